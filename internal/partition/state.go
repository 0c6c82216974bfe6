package partition

import (
	"bytes"
	"slices"
	"sort"
)

// State is the state of a record of the window.
type State = state

// The states, for callers that look at a window.
const (
	Queued     = queued
	Unverified = unverified
	InFlight   = inFlight
	NackedBusy = nacked
	Pended     = pending
	Parked     = parked
	Due        = due
	Rejecting  = rejecting
	Confirming = confirming
	Delayed    = delayed
	states     = int(settled)
)

// String returns in words what a record waits for.
func (s state) String() string { return stateNames[s] }

// Counts has the number of records by state.
type Counts [states]int

// mostKey is how many bytes of its key a RecordState has.
const mostKey = 256

// RecordState describes an unsettled record.
type RecordState struct {
	Offset  int64
	Key     []byte // a copy, cut at 256 bytes, of that of its lane, or its own; nil if it has none, or was pushed out of memory
	State   State
	Since   int64 // when it entered this state, by Config.Clock
	Attempt int
	DueAt   int64 // when it is delivered again, by the caller's clock; 0 if not set
	Tries   []Try // the first and the latest ones
	// Rejected is why it is given up before its next delivery; see Condemn.
	Rejected error
}

// Overview is a snapshot of a window.
type Overview struct {
	Oldest      *RecordState // the record that holds the watermark; nil if everything is settled
	Counts      Counts
	Watermark   int64
	Next        int64 // the offset after the last record
	Running     int   // deliveries whose handlers have not returned
	Ready       int   // records that only wait for a slot
	Uncommitted int   // records that count for MaxUncommitted
	Blocked     bool  // MaxUncommitted holds records back
	Paused      bool
	Draining    bool
	Moved       int64 // when a record was last settled, or the assignment began, by Config.Clock
}

// Unsettled returns how many records of the window are not settled.
func (o *Overview) Unsettled() (n int) {
	for _, m := range o.Counts {
		n += m
	}
	return n
}

func (p *Partition[R, H]) clock() int64 { return p.cfg.Clock.Load() }

// set changes the state of a record.
func (p *Partition[R, H]) set(e *entry[R, H], s state) {
	p.counts[e.state]--
	p.counts[s]++
	e.state, e.since = s, p.clock()
}

func (p *Partition[R, H]) recordState(seq uint64) *RecordState {
	e, n := p.at(seq), p.notes[seq]
	h := &RecordState{Offset: e.offset, State: e.state, Since: e.since, Attempt: e.attempt, Tries: slices.Clone(n.tries), Rejected: n.condemned}
	if e.state.timed() || e.state == nacked {
		h.DueAt = e.dueAt
	}
	if p.in(e.lane).keyed {
		h.Key = []byte(e.lane.key[:min(len(e.lane.key), mostKey)])
	} else if !e.evicted && p.cfg.Key != nil {
		key := p.cfg.Key(e.record)
		h.Key = bytes.Clone(key[:min(len(key), mostKey)])
	}
	return h
}

// Overview returns a snapshot. It costs as much as a settlement.
func (p *Partition[R, H]) Overview() Overview {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := Overview{
		Counts: Counts(p.counts[:states]), Watermark: p.watermark, Next: p.watermark,
		Running: len(p.running), Paused: p.paused, Draining: p.phase >= draining, Moved: p.moved,
	}
	if p.chunks == nil {
		return o
	}
	o.Next, o.Ready, o.Uncommitted, o.Blocked = p.lastOffset()+1, p.nready, max(0, p.uncommitted(p.taken)), p.phase <= running && p.blocked()
	if p.head < p.tail {
		o.Oldest = p.recordState(p.head)
	}
	return o
}

// eachSlow calls f with the deliveries whose handlers began before a time, by Config.Clock, and
// with their records' entries: nil if the record is settled and its handler continues.
func (p *Partition[R, H]) eachSlow(before int64, f func(d *Delivery[R, H], began int64, e *entry[R, H])) {
	if p.phase == closed {
		return
	}
	for _, d := range p.running {
		began := d.began.Load()
		if began == 0 || began > before { // nobody has taken it, or not for long
			continue
		}
		e := p.live(d.seq)
		switch {
		case e == nil || e.d != d:
			f(d, began, nil)
		case e.state != confirming: // otherwise its handler begins once the commit is stored
			f(d, began, e)
		}
	}
}

// Slow returns the delivery whose handler has run longest, and how many handlers began before a
// time, by Config.Clock. It returns nil if none did.
func (p *Partition[R, H]) Slow(before int64) (oldest *RecordState, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var first *Delivery[R, H]
	var of *entry[R, H]
	var since int64
	p.eachSlow(before, func(d *Delivery[R, H], began int64, e *entry[R, H]) {
		if n++; first == nil || began < since {
			first, of, since = d, e, began
		}
	})
	switch {
	case first == nil:
		return nil, 0
	case of != nil:
		oldest = p.recordState(first.seq)
	default:
		oldest = &RecordState{Offset: first.offset, State: settled, Attempt: int(first.attempt)}
	}
	oldest.Since = since
	return oldest, n
}

// NameSlow makes the next commit name the deliveries whose handlers began before a time, by
// Config.Clock. Of other records in their first delivery a commit says nothing: it would take a
// fingerprint of each.
func (p *Partition[R, H]) NameSlow(before int64) Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	version := p.version
	p.eachSlow(before, func(_ *Delivery[R, H], began int64, e *entry[R, H]) {
		if e == nil || !p.know(e) {
			return
		}
		if e.first == 0 && e.attempt == 1 {
			e.first = began
		}
		p.version++
	})
	return p.after(version)
}

// LeftPending returns the oldest record if its handler left it unsettled before a time, by Config.Clock.
func (p *Partition[R, H]) LeftPending(before int64) *RecordState {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.counts[pending] == 0 || p.phase == closed {
		return nil
	}
	if e := p.at(p.head); e.state != pending || e.since > before {
		return nil
	}
	return p.recordState(p.head)
}

// Failing returns the oldest record if n deliveries or more have failed.
func (p *Partition[R, H]) Failing(n int) *RecordState {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.chunks == nil || p.head == p.tail || p.phase == closed {
		return nil
	}
	switch e := p.at(p.head); {
	case e.state == inFlight && e.attempt > n, (e.state == nacked || e.state == parked || e.state == due) && e.attempt >= n:
		return p.recordState(p.head)
	}
	return nil
}

// Section is a part of the window with at most 64 records.
type Section struct {
	From, To int64 // offsets: of the first record, and after the last
	Records  int
	Counts   Counts // of the unsettled records
}

// Window describes at most so many unsettled records, the oldest first, and the sections
// that contain them. The result is not of one moment: the lock is held for one section at a
// time.
func (p *Partition[R, H]) Window(most int) (records []RecordState, sections []Section) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for seq := p.head; seq < p.tail && p.chunks != nil; {
		end := min(p.tail, (seq/span+1)*span)
		c := p.chunk(seq)
		if c.entries == nil {
			sections = append(sections, Section{From: c.first, To: c.last + 1, Records: span})
		} else {
			s := Section{From: c.entries[seq%span].offset, To: c.entries[(end-1)%span].offset + 1, Records: int(end - seq)}
			for at := seq; at < end; at++ {
				if e := &c.entries[at%span]; e.state != settled {
					s.Counts[e.state]++
					if len(records) < most {
						records = append(records, *p.recordState(at))
					}
				}
			}
			sections = append(sections, s)
		}
		p.mu.Unlock()
		p.mu.Lock()
		seq = max(end, p.head)
	}
	return records, sections
}

// find returns the unsettled record at an offset.
func (p *Partition[R, H]) find(offset int64) (seq uint64, e *entry[R, H]) {
	if p.phase == closed || p.head == p.tail {
		return 0, nil
	}
	first := p.head / span
	n := int((p.tail-1)/span - first + 1)
	// Its chunk is the one before the first that begins behind it.
	i := sort.Search(n, func(i int) bool {
		c := p.chunk((first + uint64(i)) * span)
		if c.entries == nil {
			return c.first > offset
		}
		return c.entries[0].offset > offset
	}) - 1
	if i < 0 {
		return 0, nil
	}
	from := (first + uint64(i)) * span
	c := p.chunk(from)
	if c.entries == nil {
		return 0, nil
	}
	for at := max(from, p.head); at < min(from+span, p.tail); at++ {
		if e := &c.entries[at%span]; e.offset == offset && e.state != settled {
			return at, e
		}
	}
	return 0, nil
}
