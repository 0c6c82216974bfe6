package partition

import (
	"bytes"
	"slices"
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

// Failures returns how many deliveries of a record that is with its handler, or waits for its
// next delivery, have failed.
func (h *RecordState) Failures() int {
	switch h.State {
	case inFlight:
		return h.Attempt - 1
	case nacked, parked, due:
		return h.Attempt
	}
	return 0
}

// Overview is a snapshot of a window.
type Overview struct {
	Load
	Oldest      *RecordState // the record that holds the watermark; nil if everything is settled, or at the end
	Counts      Counts
	Watermark   int64
	Next        int64 // the offset after the last record
	Uncommitted int   // records that count for MaxUncommitted
	Paused      bool
	Draining    bool
	Moved       int64 // when a record was last settled, or the assignment began, by Config.Clock
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
		Load: p.load(), Counts: Counts(p.counts[:states]), Watermark: p.watermark, Next: p.next,
		Uncommitted: max(0, p.uncommitted(p.taken)), Paused: p.paused, Draining: p.phase >= draining, Moved: p.moved,
	}
	o.Blocked = o.Blocked && !o.Draining
	if p.head < p.tail && p.phase != closed {
		o.Oldest = p.recordState(p.head)
	}
	return o
}

// Slow returns the delivery whose handler has run longest, and how many handlers began before a
// time, by Config.Clock. It returns nil if none did. The next commit names their records: of others
// in their first delivery it says nothing, since it would take a fingerprint of each.
func (p *Partition[R, H]) Slow(before int64) (oldest *RecordState, n int, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == closed {
		return nil, 0, Work{}
	}
	var first *Delivery[R, H]
	var since int64
	for _, d := range p.running {
		began, e := d.began.Load(), p.live(d.seq)
		switch {
		case began == 0 || began > before: // nobody has taken it, or not for long
			continue
		case e != nil && e.state == confirming: // its handler begins once the commit is stored
			continue
		case e != nil && p.know(e):
			if e.first == 0 && e.attempt == 1 {
				e.first = began
			}
			p.changed()
		}
		if n++; first == nil || began < since {
			first, since = d, began
		}
	}
	switch {
	case first == nil:
		return nil, 0, Work{}
	case p.live(first.seq) != nil:
		oldest = p.recordState(first.seq)
	default:
		oldest = &RecordState{Offset: first.offset, State: settled, Attempt: int(first.attempt)}
	}
	oldest.Since = since
	return oldest, n, p.work()
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
	if p.phase == closed {
		return 0, nil
	}
	p.each(p.head, func(at uint64, found *entry[R, H]) bool {
		if found.offset == offset {
			seq, e = at, found
		}
		return found.offset < offset
	})
	return seq, e
}
