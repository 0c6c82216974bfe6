package partition

import "math"

// Mark is a watermark that can be committed.
type Mark struct {
	Offset int64  // what to commit
	Seq    uint64 // records below it are covered
	// Changes counts what has become of open records, see Unsettled.
	Changes uint64
}

// Mark answers the watermark.
func (p *Partition[R]) Mark() Mark {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Mark{Offset: p.watermark, Seq: p.head, Changes: p.changes}
}

// Skip moves the watermark over offsets that hold no record, from the next one on: control
// records, aborted ones, what compaction removed. It changes nothing and returns false if
// a record is not settled, or was pushed since the caller asked for the next offset.
func (p *Partition[R]) Skip(from, to int64) (Work, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.head != p.tail || p.watermark != from || to <= from {
		return Work{}, false
	}
	p.watermark = to
	w := p.work()
	w.Moved = true
	return w, true
}

// Committed tells that a commit of m was confirmed. It makes room under MaxUncommitted.
func (p *Partition[R]) Committed(m Mark) Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Committed && m.Seq > p.committed {
		p.committed = m.Seq
		p.admit()
	}
	return p.work()
}

// Load is what decides about pausing the partition.
type Load struct {
	Ready     int  // records that wait for a slot only
	Blocked   bool // MaxUncommitted holds records back
	Running   int  // unfinished deliveries
	Unsettled int  // records from the oldest unsettled one on
	Waiting   int  // unfinished deliveries that wait for a commit
	Last      bool // stopped, and a record below a settled one is not handled yet

	Uncommitted int // records below the watermark that no confirmed commit covers
}

// Load answers the present load.
func (p *Partition[R]) Load() Load {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Load{
		Ready: p.nready, Blocked: p.admitted != p.tail, Running: p.nrunning,
		Unsettled: int(p.tail - p.head), Uncommitted: int(p.head - p.committed),
		Waiting: p.nwaiting, Last: p.lastLeft(),
	}
}

// Next answers the offset behind the last record pushed.
func (p *Partition[R]) Next() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastOffset() + 1
}

func (p *Partition[R]) lastLeft() bool {
	if !p.stopped {
		return false
	}
	for d := p.running.first; d != nil; d = d.next {
		if d.last {
			return true
		}
	}
	_, ok, soon := p.hole()
	return ok || soon
}

// late tells that a record may yet be settled whose handler returned without that.
func (p *Partition[R]) late() bool {
	return p.npending > 0 && p.cfg.Late != nil && p.cfg.Late.Load()
}

// ArmLow asks for Work.Low once, as soon as at most n records are ready and
// none is held back. If that is so already it asks for nothing.
func (p *Partition[R]) ArmLow(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.low = n
	if p.nready <= n && p.admitted == p.tail {
		p.low = -1
	}
}

// Oldest describes the oldest unsettled record: the one that holds the partition's commit.
type Oldest struct {
	Offset  int64
	Attempt int
	State   string
}

// Oldest answers false if everything is settled.
func (p *Partition[R]) Oldest() (Oldest, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.head == p.tail {
		return Oldest{}, false
	}
	e := p.at(p.head)
	return Oldest{Offset: e.offset, Attempt: e.attempt, State: stateNames[e.state]}, true
}

var stateNames = [...]string{
	queued:    "waiting for a slot",
	inFlight:  "with its handler",
	nacked:    "nacked, its handler still runs",
	pending:   "its handler returned without settling it",
	parked:    "nacked, waiting for its next delivery",
	due:       "nacked, waiting for a slot",
	rejecting: "rejected, its dead letter is not stored yet",
	settled:   "settled",
}

// Stop ends the handing out, but for records below one that is settled: those
// would bring it with them when they come again. Of those, nacked ones count that
// come due until then, by the caller's clock. The returned channel closes once no
// handler runs, no dead letter is being stored, none of those records is left
// and, where the application settles late, nothing is pending.
func (p *Partition[R]) Stop(until int64) (<-chan struct{}, Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopped {
		p.stopped, p.until, p.holes = true, until, p.head
		p.drained = make(chan struct{})
		p.checkDrained()
	}
	return p.drained, p.work()
}

// Leaves answers the first record that a stopped partition leaves to its next
// owner, as far as can be told by now: no commit passes it any more.
func (p *Partition[R]) Leaves() (seq uint64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopped || p.closed {
		return 0, false
	}
	for seq = p.head; seq < p.high; seq++ {
		if p.leaves(p.at(seq)) {
			return seq, true
		}
	}
	return 0, false
}

func (p *Partition[R]) leaves(e *entry[R]) bool {
	allWait := p.nrunning == p.nwaiting
	switch e.state {
	case queued:
		return p.gaveUp
	case parked:
		return p.gaveUp || p.tried(e)
	case due: // one whose lane waits for it needs the lane
		return p.gaveUp || p.tried(e) ||
			allWait && p.cfg.Order != Unordered && e.lane.inFlight > 0 && !p.runsBefore(e)
	case pending: // a handler may yet settle it, or the application late
		return allWait && !p.late()
	}
	return false
}

// runsBefore tells whether a handler of the record's lane runs for an earlier one:
// then what it waits for may come.
func (p *Partition[R]) runsBefore(e *entry[R]) bool {
	for d := p.running.first; d != nil; d = d.next {
		if d.lane == e.lane && d.offset < e.offset {
			return true
		}
	}
	return false
}

// LeaveNacked ends the handing out of nacked records: half of the drain's time is up.
func (p *Partition[R]) LeaveNacked() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = math.MinInt64
	p.checkDrained()
}

// GiveUp ends the handing out for good: nobody takes what is handed out.
func (p *Partition[R]) GiveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gaveUp = true
	p.checkDrained()
}

func (p *Partition[R]) checkDrained() {
	if p.drained == nil || p.nrunning > 0 || p.nreject > 0 || p.late() {
		return
	}
	if _, ok, soon := p.hole(); ok || soon {
		return
	}
	select {
	case <-p.drained:
	default:
		close(p.drained)
	}
}

// Left counts what a closed partition did not settle.
type Left struct {
	First   int64 // the lowest offset; -1: none
	Running int   // with a handler
	Pending int   // handlers returned without settling
	Nacked  int   // waiting for the next delivery
	Letters int   // rejected, the dead letter not stored
	Unread  int   // below a settled one, and taken by nobody
}

// Left counts what is not settled now, of what was delivered or has to be before
// a stopped partition is drained.
func (p *Partition[R]) Left() Left {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left()
}

func (p *Partition[R]) left() Left {
	left := Left{First: -1}
	for seq := p.head; seq != p.taken && seq < p.tail; seq++ {
		e := p.at(seq)
		switch e.state {
		case inFlight:
			left.Running++
		case pending:
			left.Pending++
		case nacked, parked, due:
			left.Nacked++
		case rejecting:
			left.Letters++
		case queued:
			if seq < p.high {
				left.Unread++
			}
			continue
		default:
			continue
		}
		if left.First < 0 {
			left.First = e.offset
		}
	}
	return left
}

// Close ends the assignment: nothing settles from now on. It stops the
// partition if that was not done, and answers what was delivered and not
// settled, and the deliveries whose handlers still run.
func (p *Partition[R]) Close() (Left, []*Delivery[R]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return Left{First: -1}, nil
	}
	p.stopped, p.closed = true, true
	if p.drained == nil {
		p.drained = make(chan struct{})
	}
	left := p.left()
	p.unsettled = p.collect()
	if p.cfg.Bytes != nil {
		for seq := p.head; seq != p.tail; seq++ {
			if e := p.at(seq); e.state != settled && !e.evicted {
				p.cfg.Bytes.Add(-int64(e.size))
			}
		}
	}
	var running []*Delivery[R]
	for d := p.running.first; d != nil; d = d.next {
		running = append(running, d)
	}
	p.drop()
	return left, running
}

// drop forgets the window of a closed partition: the application may keep a
// delivery for as long as it likes, and with it the partition.
func (p *Partition[R]) drop() {
	for seq := p.head; seq != p.tail; seq++ {
		if d := p.at(seq).d; d != nil && d.finished {
			d.drop()
		}
	}
	p.tail, p.admitted = p.head, p.head
	p.ring, p.lanes, p.spare, p.only, p.ready = nil, nil, nil, lane{}, laneQueue{}
	p.redo, p.timers, p.open = nil, nil, nil
}

type deliveryList[R any] struct{ first *Delivery[R] }

func (l *deliveryList[R]) push(d *Delivery[R]) {
	d.prev, d.next = nil, l.first
	if l.first != nil {
		l.first.prev = d
	}
	l.first = d
}

func (l *deliveryList[R]) remove(d *Delivery[R]) {
	if d.prev != nil {
		d.prev.next = d.next
	} else {
		l.first = d.next
	}
	if d.next != nil {
		d.next.prev = d.prev
	}
	d.prev, d.next = nil, nil
}
