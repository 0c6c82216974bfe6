package partition

import "math"

// lane is a queue of records that are handled one at a time. The lane of an Unordered
// partition is an exception: any number of its records is handled at once.
type lane struct {
	key          string
	keyed        bool           // it is in Partition.lanes under key
	first, last  uint64         // records that were never delivered, in order, as seq+1; 0 if there is none
	n            int            // the number of these
	parked       heap[sequence] // nacked and delayed records
	behindParked bool           // parkedFirst, when it was last weighed
	live         int            // unsettled records
	inFlight     int            // unfinished deliveries
	queued       bool           // it is in the ready queue
	next         *lane          // in the ready queue or the free list
}

type laneQueue struct {
	first, last *lane
	n           int
}

func (q *laneQueue) push(l *lane) {
	l.queued, l.next = true, nil
	if q.last == nil {
		q.first = l
	} else {
		q.last.next = l
	}
	q.last = l
	q.n++
}

func (q *laneQueue) pop() *lane {
	l := q.first
	if l == nil {
		return nil
	}
	q.first = l.next
	if q.first == nil {
		q.last = nil
	}
	l.queued, l.next = false, nil
	q.n--
	return l
}

// enter sets the lane of a record.
func (p *Partition[R, H]) enter(e *entry[R, H], key []byte) {
	if p.cfg.Order == ByKey {
		e.lane = p.laneOf(key)
	}
	p.in(e.lane).live++
}

// in returns the lane of an entry or a delivery: nil stands for the only one, since the garbage
// collector would follow each pointer to it.
func (p *Partition[R, H]) in(l *lane) *lane {
	if l == nil {
		return &p.only
	}
	return l
}

// exit removes a settled record from its lane.
func (p *Partition[R, H]) exit(e *entry[R, H]) {
	l := p.in(e.lane)
	l.live--
	p.release(l)
	e.lane = nil
}

// join queues a record in its lane.
func (p *Partition[R, H]) join(seq uint64, e *entry[R, H]) {
	l := p.in(e.lane)
	if e.dueAt != 0 { // it is to be delayed, or an earlier owner nacked it
		if e.attempt > 0 {
			p.taken = max(p.taken, seq+1)
		}
		p.park(seq, math.MinInt64)
		return
	}
	if l.last == 0 {
		l.first = seq + 1
	} else {
		p.at(l.last - 1).next = seq + 1
	}
	l.last = seq + 1
	l.n++
	if !l.behindParked {
		p.nready++
	}
	p.enqueue(l)
}

// weigh makes the queued records of a lane count as ready, unless a parked one is before them.
func (p *Partition[R, H]) weigh(l *lane) {
	if behind := l.parkedFirst(); behind != l.behindParked {
		l.behindParked = behind
		if behind {
			p.nready -= l.n
		} else {
			p.nready += l.n
		}
	}
}

// parkedFirst reports whether the next record of the lane is a nacked or delayed one.
func (l *lane) parkedFirst() bool {
	return len(l.parked) > 0 && (l.first == 0 || uint64(l.parked[0]) < l.first-1)
}

func (p *Partition[R, H]) laneOf(key []byte) *lane {
	if key != nil {
		if l := p.lanes[string(key)]; l != nil {
			return l
		}
	}
	l := p.spare
	if l == nil {
		l = &lane{}
	} else {
		p.spare = l.next
		l.next = nil
	}
	if key != nil {
		l.key, l.keyed = string(key), true
		p.lanes[l.key] = l
	}
	return l
}

// enqueue puts a lane with a deliverable record into the ready queue.
func (p *Partition[R, H]) enqueue(l *lane) {
	if !l.queued && p.canTake(l) {
		p.ready.push(l)
	}
}

func (p *Partition[R, H]) canTake(l *lane) bool {
	if p.cfg.Order == Unordered {
		return l.first != 0 || len(p.redo) > 0
	}
	if l.inFlight > 0 {
		return false
	}
	if l.parkedFirst() {
		return p.at(uint64(l.parked[0])).state == due
	}
	return l.first != 0
}

// pop removes the next deliverable record from the ready lanes.
func (p *Partition[R, H]) pop() (uint64, bool) {
	for l := p.ready.pop(); l != nil; l = p.ready.pop() {
		if !p.canTake(l) {
			p.release(l) // it was emptied, or a record is in flight, since it was queued
			continue
		}
		seq, ok := p.takeFrom(l)
		if p.cfg.Order == Unordered {
			p.enqueue(l)
		}
		if ok {
			return seq, true
		}
	}
	return 0, false
}

// takeFrom removes the first deliverable record of a lane for which canTake reports true.
func (p *Partition[R, H]) takeFrom(l *lane) (uint64, bool) {
	if p.cfg.Order == Unordered {
		for len(p.redo) > 0 {
			seq := p.redo[0]
			p.redo = p.redo[1:]
			if e := p.live(seq); e != nil && e.state == due {
				return seq, true
			}
		}
		if l.first == 0 {
			return 0, false
		}
	} else if l.parkedFirst() {
		return p.unpark(l), true
	}
	return p.shift(l), true
}

// shift removes the first record of a lane that was never delivered.
func (p *Partition[R, H]) shift(l *lane) uint64 {
	seq := l.first - 1
	if l.first = p.at(seq).next; l.first == 0 {
		l.last = 0
	}
	l.n--
	if !l.behindParked {
		p.nready--
	}
	if len(l.parked) > 0 {
		p.weigh(l)
	}
	return seq
}

// park puts a record that waits for its time into its place: one that was delivered before the
// records that never were, one that was not behind them.
func (p *Partition[R, H]) park(seq uint64, now int64) {
	e := p.at(seq)
	if e.attempt == 0 {
		p.set(e, delayed)
	} else {
		p.set(e, parked)
		p.open = min(p.open, seq)
	}
	e.letGo()
	if p.cfg.Order != Unordered {
		l := p.in(e.lane)
		l.parked.push(sequence(seq))
		p.weigh(l)
	}
	if e.dueAt <= now {
		p.fallDue(seq)
	} else if p.timers.push(redelivery{at: e.dueAt, seq: seq, attempt: e.attempt}) {
		p.flags |= Timer
	}
}

// unpark removes the first nacked or delayed record of a lane.
func (p *Partition[R, H]) unpark(l *lane) uint64 {
	seq := l.parked.pop()
	p.weigh(l)
	return uint64(seq)
}

func (p *Partition[R, H]) fallDue(seq uint64) {
	e := p.at(seq)
	p.set(e, due)
	if p.cfg.Order == Unordered {
		p.redo = append(p.redo, seq)
	}
	p.enqueue(p.in(e.lane))
}

// timed reports whether a record waits for its time.
func (s state) timed() bool { return s == parked || s == delayed }

// release recycles a lane once no record and no delivery belongs to it.
func (p *Partition[R, H]) release(l *lane) {
	if l == &p.only || l.queued || l.live > 0 || l.inFlight > 0 {
		return
	}
	if l.keyed {
		delete(p.lanes, l.key)
	}
	*l = lane{parked: l.parked[:0], next: p.spare}
	p.spare = l
}

// Due returns when the earliest redelivery is due, by the caller's clock.
func (p *Partition[R, H]) Due() (at int64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.timers) == 0 {
		return 0, false
	}
	return p.timers[0].at, true
}

// Tick makes records deliverable whose delay is over.
func (p *Partition[R, H]) Tick(now int64) Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.timers) > 0 && p.timers[0].at <= now {
		t := p.timers.pop()
		if e := p.live(t.seq); e != nil && e.state.timed() && e.attempt == t.attempt {
			p.fallDue(t.seq)
		}
	}
	return p.work()
}
