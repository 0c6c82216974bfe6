package partition

import "slices"

// Stop makes the partition hand out nothing more. The returned channel is closed once no
// handler runs, no dead letter is being stored and, if the application settles late,
// nothing is pending.
func (p *Partition[R, H]) Stop() (<-chan struct{}, Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase = max(p.phase, draining)
	return p.drained, p.work()
}

func (p *Partition[R, H]) checkDrained() {
	late := p.counts[pending] > 0 && p.cfg.Late != nil && p.cfg.Late.Load() // a pending record may still be settled
	if p.phase < draining || len(p.running) > 0 || p.counts[rejecting] > p.naside || late {
		return
	}
	select {
	case <-p.drained:
	default:
		close(p.drained)
	}
}

// Left counts what a partition leaves unsettled.
type Left struct {
	First   int64 // the lowest offset; -1 if there is none
	Running int   // with a handler
	Pending int   // handlers returned without settling
	Nacked  int   // waiting for the next delivery
	Letters int   // rejected, the dead letter not stored
	// Unmarked are settled records that come again nevertheless, since the commit had no
	// room for their marks. The caller sets it.
	Unmarked int
}

// Left counts what was delivered and is not settled.
func (p *Partition[R, H]) Left() Left {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left()
}

func (p *Partition[R, H]) left() Left {
	left := Left{First: -1}
	p.each(p.head, func(_ uint64, e *entry[R, H]) bool {
		switch e.state {
		case inFlight, confirming:
			left.Running++
		case pending:
			left.Pending++
		case nacked, parked, due:
			if e.attempt == 0 { // delayed, and now due
				return true
			}
			left.Nacked++
		case rejecting:
			left.Letters++
		default:
			return true
		}
		if left.First < 0 {
			left.First = e.offset
		}
		return true
	})
	return left
}

// Close ends the assignment: nothing settles from now on. It returns what was delivered and
// not settled, and the deliveries whose handlers still run. What is settled can be committed
// until Drop.
func (p *Partition[R, H]) Close() (Left, []*Delivery[R, H]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == closed {
		return Left{First: -1}, nil
	}
	p.phase = closed
	left := p.left()
	p.each(p.head, func(_ uint64, e *entry[R, H]) bool {
		if e.d != nil && e.d.finished {
			e.d.drop()
		}
		p.dropBytes(e)
		return true
	})
	return left, slices.Clone(p.running)
}

// Touch makes the next commit be sent even if nothing has changed.
func (p *Partition[R, H]) Touch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.version++
}

// Drop releases the window of a closed partition: the application may keep a delivery, and
// with it the partition, for as long as it likes.
func (p *Partition[R, H]) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.head, p.front, p.admitted, p.high, p.taken = p.tail, p.tail, p.tail, 0, 0
	p.chunks, p.inherited = nil, inherited{}
	p.lanes, p.spare, p.only, p.ready = nil, nil, lane{}, laneQueue{}
	p.throwAway()
	p.counts = [states + 1]int{}
	p.redo, p.timers, p.confirming, p.notes = nil, nil, nil, nil
}

// each calls do for the unsettled records from a sequence number on, until do returns false.
func (p *Partition[R, H]) each(from uint64, do func(seq uint64, e *entry[R, H]) bool) {
	for seq := max(from, p.head); seq < p.tail; seq++ {
		c := p.chunk(seq)
		if c.entries == nil {
			seq |= span - 1
			continue
		}
		if e := &c.entries[seq%span]; e.state != settled && !do(seq, e) {
			return
		}
	}
}
