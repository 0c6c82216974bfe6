package partition

// Status is the fate of one delivery.
type Status uint8

const (
	Pending Status = iota
	Acked
	Nacked
	Rejected
	Revoked // no longer ours: the partition was closed before it was settled
)

// Verdict is what a settlement asks for. Its status answers whether an earlier
// settlement was equal to it.
type Verdict struct {
	Status Status // Acked, Nacked, Rejected; Pending settles nothing
	// DueAt is when a nacked record may be delivered again, by the caller's clock.
	DueAt int64
	// First is when the first delivery of a nacked record began, by the caller's clock,
	// for Delivery.First of the next ones. 0: not known.
	First int64
	// Hold keeps a rejected record unsettled until Release: its dead letter
	// must be stored first.
	Hold bool
	// Check is the record's, see Open.Check; of no use where it is acked.
	Check uint16
}

// Delivery is one handing out of a record. The zero value is ready for Take.
// It is guarded by its partition's lock.
type Delivery[R any] struct {
	// Owner is the caller's own; this package does not touch it.
	Owner any

	seq      uint64
	offset   int64
	record   R
	lane     *lane
	first    int64
	attempt  int32
	waiting  int32
	status   Status
	finished bool
	token    bool
	last     bool // handed out in a drain
	evicted  bool
	aside    bool // its letter is refused for good

	prev, next *Delivery[R]
}

// Last tells that a stopped partition handed it out.
func (d *Delivery[R]) Last() bool { return d.last }

// Seq, Offset and Attempt do not change after Take. Nor does Record before the
// delivery is finished; from then on see Partition.Record.
func (d *Delivery[R]) Seq() uint64   { return d.seq }
func (d *Delivery[R]) Offset() int64 { return d.offset }
func (d *Delivery[R]) Record() R     { return d.record }
func (d *Delivery[R]) Attempt() int  { return int(d.attempt) }

// First is what the verdict of an earlier delivery said it is; 0: none did.
func (d *Delivery[R]) First() int64 { return d.first }

// Status answers what became of the delivery.
func (p *Partition[R]) Status(d *Delivery[R]) Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status(d)
}

func (p *Partition[R]) status(d *Delivery[R]) Status {
	if d.status == Pending && p.closed {
		return Revoked
	}
	return d.status
}

// Settle settles a delivery, unless it is settled already: the first settlement
// wins. It answers the status that holds now and whether this call set it.
func (p *Partition[R]) Settle(d *Delivery[R], v Verdict, now int64) (status Status, first bool, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	head := p.head
	first, timer := p.settle(d, v, now)
	w = p.after(head)
	w.Timer = w.Timer || timer
	return p.status(d), first, w
}

func (p *Partition[R]) settle(d *Delivery[R], v Verdict, now int64) (first, timer bool) {
	if d.status != Pending || p.closed || v.Status == Pending {
		return false, false
	}
	d.status = v.Status
	e := p.at(d.seq)
	if v.Status != Acked {
		p.know(e, v.Check)
	}
	if d.finished {
		p.settledLate()
	}
	switch {
	case v.Status == Nacked:
		e.dueAt = v.DueAt
		if e.first == 0 {
			e.first = v.First
		}
		if !d.finished {
			e.state = nacked
			return true, false
		}
		timer = p.park(d.seq, now)
		p.enqueue(e.lane)
	case v.Status == Rejected && v.Hold:
		e.state = rejecting
		p.nreject++
		p.leave(d.seq)
	default:
		p.done(d.seq)
	}
	if d.finished {
		p.settledDrop(d)
	}
	return true, timer
}

// settledLate takes note of a settlement after the handler returned.
func (p *Partition[R]) settledLate() {
	p.npending--
	if p.cfg.Late != nil {
		p.cfg.Late.Store(true)
	}
}

// done marks an entry settled and moves the watermark over the settled prefix.
func (p *Partition[R]) done(seq uint64) {
	p.high = max(p.high, seq+1)
	e := p.at(seq)
	p.forget(e)
	e.state, e.d = settled, nil
	e.lane.live--
	p.release(e.lane)
	e.lane = nil
	for p.head != p.tail && p.at(p.head).state == settled {
		e := p.at(p.head)
		p.watermark = e.offset + 1
		p.head++
	}
	if !p.cfg.Committed {
		p.committed = p.head
		p.admit()
	}
}

// after gathers the work of an operation that began when the window's head was head.
func (p *Partition[R]) after(head uint64) Work {
	p.checkDrained()
	w := p.work()
	w.Moved = p.head != head
	return w
}

// FinishAndTake ends a delivery: its handler returned and the Router, or
// whoever reads the messages, gave its ack or nack. It settles it first if that is
// still to be done, then hands out the next record into next, all under one lock.
func (p *Partition[R]) FinishAndTake(d *Delivery[R], v Verdict, now int64, next *Delivery[R]) (first, ok bool, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	head := p.head
	first, _ = p.settle(d, v, now)
	granted := p.end(d)
	timer := p.finish(d, v.Check, now)
	ok = p.take(next)
	w = p.after(head)
	w.Timer = w.Timer || timer
	w.granted = append(w.granted, granted...)
	return first, ok, w
}

// end takes a delivery out of those that run, and answers whose turn its place is.
func (p *Partition[R]) end(d *Delivery[R]) (granted []*Waiter) {
	d.finished = true
	p.running.remove(d)
	p.nrunning--
	d.lane.inFlight--
	if d.waiting > 0 {
		d.waiting = 0
		p.nwaiting--
	}
	if d.token {
		d.token = false
		if next := p.cfg.Limit.release(); next != nil {
			granted = append(granted, next)
		}
	}
	return granted
}

func (p *Partition[R]) finish(d *Delivery[R], check uint16, now int64) (timer bool) {
	switch {
	case p.closed:
		d.drop()
	case d.status == Nacked:
		if e := p.at(d.seq); d.seq >= p.head && e.d == d && e.state == nacked {
			timer = p.park(d.seq, now)
		}
	case d.status == Pending:
		e := p.at(d.seq)
		e.state = pending
		p.know(e, check)
		p.npending++
		p.leave(d.seq)
	}
	if !p.closed {
		p.enqueue(d.lane)
		p.release(d.lane)
		p.settledDrop(d)
	}
	d.lane = nil
	return timer
}

// settledDrop takes a finished delivery's record from it, where it needs it no longer:
// the application may keep the delivery, and with the record the whole fetch.
func (p *Partition[R]) settledDrop(d *Delivery[R]) {
	if d.status != Pending && (d.status != Rejected || d.seq < p.head || p.at(d.seq).d != d) {
		d.drop()
	}
}

// Abandon ends a delivery that reached nobody. Only a stopped partition may
// abandon: the record stays unsettled, and its next owner delivers it, or it is
// handed out once more because a later one is settled. As FinishAndTake does, it
// hands out the next record into next.
func (p *Partition[R]) Abandon(d, next *Delivery[R]) (w Work, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	granted := p.end(d)
	if p.closed {
		p.finish(d, 0, 0)
	} else if d.status == Pending {
		e := p.at(d.seq)
		e.state, e.d = queued, nil
		p.holes = min(p.holes, d.seq)
		if e.attempt--; e.attempt > 0 {
			p.park(d.seq, e.dueAt)
		}
	}
	ok = p.take(next)
	w = p.after(p.head)
	w.granted = append(w.granted, granted...)
	return w, ok
}

// Acknowledged is a record that another's cumulative ack settled.
type Acknowledged struct {
	Offset  int64
	Attempt int
}

// AckCumulative acks d, and with it every earlier record that was delivered and
// whose handler does not run now. It answers d's status and those records.
func (p *Partition[R]) AckCumulative(d *Delivery[R], now int64) (status Status, first bool, acked []Acknowledged, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	head := p.head
	first, _ = p.settle(d, Verdict{Status: Acked}, now)
	var rejected []uint64 // they stay open until their letters are stored
	for d.status == Acked && !p.closed && len(p.open) > 0 && uint64(p.open[0]) < d.seq {
		seq := uint64(p.open.pop())
		if seq < p.head {
			continue
		}
		e := p.at(seq)
		e.open = false
		l := e.lane
		switch e.state {
		case pending:
			e.d.status = Acked
			e.d.drop()
			p.settledLate()
		case parked, due: // the first of its lane: those before it are acked by now
			if p.cfg.Order != Unordered {
				p.unpark(l)
			}
		case rejecting:
			rejected = append(rejected, seq)
			continue
		default:
			continue
		}
		acked = append(acked, Acknowledged{e.offset, e.attempt})
		p.done(seq)
		p.enqueue(l)
	}
	for _, seq := range rejected {
		p.leave(seq)
	}
	w = p.after(head)
	return p.status(d), first, acked, w
}

// leave enters a record that no handler has into what a cumulative ack may settle.
func (p *Partition[R]) leave(seq uint64) {
	e := p.at(seq)
	if e.open {
		return
	}
	for len(p.open) > 0 && uint64(p.open[0]) < p.head {
		p.open.pop()
	}
	e.open = true
	p.open.push(sequence(seq))
}

// Release settles a rejected record that was held until its dead letter was stored.
func (p *Partition[R]) Release(d *Delivery[R]) (ok bool, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	head := p.head
	if !p.closed && d.seq >= p.head && p.at(d.seq).d == d && p.at(d.seq).state == rejecting {
		if d.aside {
			p.naside--
		} else {
			p.nreject--
		}
		p.done(d.seq)
		if ok = true; d.finished {
			d.drop()
		}
	}
	return ok, p.after(head)
}

// SetAside ends a drain's wait for the letter of a rejected record, which is refused
// for good. It may be released nevertheless.
func (p *Partition[R]) SetAside(d *Delivery[R]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && !d.aside && d.seq >= p.head && p.at(d.seq).d == d && p.at(d.seq).state == rejecting {
		d.aside = true
		p.nreject--
		p.naside++
		p.checkDrained()
	}
}

// Wait tells that the handler of d begins (+1) or ends (-1) to wait for a commit.
// Meanwhile the oldest unsettled record, which that commit waits for, may run out of turn.
func (p *Partition[R]) Wait(d *Delivery[R], by int) Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !d.finished && d.lane != nil {
		d.waiting += int32(by)
		// Several goroutines of one handler may wait: it counts once.
		if (by > 0 && d.waiting == 1) || (by < 0 && d.waiting == 0) {
			p.nwaiting += by
		}
	}
	return p.work()
}
