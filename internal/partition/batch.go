package partition

import "slices"

// With Config.Batches, records are handed out in batches: Collect takes records for a batch
// that is being filled, Seal ends that, and EndBatch finishes the deliveries when the handler
// of the batch has returned. Return takes back what no handler had.
//
// A lane hands out any number of its records to the same batch, in their order, and none to
// another one before they are finished. For that, a lane does not count collected records as
// in flight before Seal; so only one batch may be collected at a time.

// Collect hands out at most len(ds) of the room records that the batch has room for, with at
// most so many bytes. With first, the batch is empty: it hands out one that is larger, too. It
// returns how many, their bytes, and whether the next one had no room. Work.Ready comes once the
// batch needs to be looked after again: with the first record, then with about the partition's
// share of what is missing. It shares that with others, so many in all.
func (p *Partition[R, H]) Collect(ds []*Delivery[R, H], room, bytes int, first bool, share int) (n, size int, full bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n < len(ds) && p.handsOut() && len(p.running) < p.most() {
		seq, ok := p.pop()
		if !ok {
			break
		}
		e := p.at(seq)
		if size+e.size > bytes && !(first && n == 0) {
			p.putBack(seq)
			full = true
			break
		}
		p.deliver(ds[n], seq)
		l := p.in(e.lane)
		l.inFlight--
		p.enqueue(l)
		size += e.size
		n++
	}
	p.need, p.called = 1, false
	if n > 0 || !first {
		p.need = max(1, (room-n)/share)
	}
	return n, size, full
}

// call reports whether whoever fills a batch is to be called, once after each Collect.
func (p *Partition[R, H]) call() bool {
	if p.called || p.ready.first == nil || p.need > 1 && p.nready+p.counts[due] < p.need && !p.blocked() {
		return false
	}
	p.called = true
	return true
}

// Seal makes lanes wait until these deliveries, which were collected, are finished.
func (p *Partition[R, H]) Seal(ds []*Delivery[R, H]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range ds {
		p.in(d.lane).inFlight++
	}
}

// SameLane reports whether two unfinished deliveries are of one lane.
func (p *Partition[R, H]) SameLane(a, b *Delivery[R, H]) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg.Order != Unordered && a.lane == b.lane
}

// End is the end of a delivery of a batch. There is one per record: its size matters.
type End[R, H any] struct {
	Delivery *Delivery[R, H]
	Verdict  *Verdict // nil settles nothing; others may share it
}

// EndBatch finishes deliveries, and settles those that are not settled. They are in
// the order of their sequence numbers.
func (p *Partition[R, H]) EndBatch(ends []End[R, H], now int64) Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range ends {
		p.finish(ends[i].Delivery, ends[i].Verdict, now)
	}
	return p.work()
}

// Return takes back records of a batch that no handler had. They are in the order of their
// sequence numbers. These deliveries do not count, and are Revoked: each record is the next one
// of its lane again. One that was settled meanwhile is finished.
func (p *Partition[R, H]) Return(ds []*Delivery[R, H], now int64) Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range slices.Backward(ds) {
		p.takeBack(d, now)
	}
	return p.work()
}

// takeBack ends a delivery that no handler received.
func (p *Partition[R, H]) takeBack(d *Delivery[R, H], now int64) {
	if d.status != Pending || p.phase == closed {
		p.finish(d, nil, now)
		return
	}
	p.end(d)
	d.status, d.lane = Revoked, nil
	e := p.at(d.seq)
	e.letGo()
	e.attempt--
	p.changed()
	if e.attempt > 0 || e.dueAt != 0 {
		p.set(e, due)
		p.open = min(p.open, d.seq)
	} else {
		p.set(e, queued)
	}
	p.putBack(d.seq)
}

// putBack makes a record the next one of its lane, out of which it was taken.
func (p *Partition[R, H]) putBack(seq uint64) {
	e := p.at(seq)
	l := p.in(e.lane)
	switch {
	case e.state == due && p.cfg.Order == Unordered:
		p.redo = append(p.redo, seq)
	case e.state == due:
		l.parked.push(sequence(seq))
		p.weigh(l)
	default:
		if e.next = l.first; l.last == 0 {
			l.last = seq + 1
		}
		l.first = seq + 1
		if l.n++; !l.behindParked {
			p.nready++
		}
		p.weigh(l)
	}
	p.enqueue(l)
}
