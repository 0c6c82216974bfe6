package partition

import "sync/atomic"

// Status is the fate of one delivery.
type Status uint8

const (
	Pending Status = iota
	Acked
	Nacked
	Rejected
	Revoked // the partition was closed before it was settled
)

// Verdict is a settlement. Two settlements with the same status are equal.
type Verdict struct {
	Status Status // Acked, Nacked, Rejected; Pending settles nothing
	// DueAt is when a nacked record may be delivered again, by the caller's clock.
	DueAt int64
	// First is when the first delivery of a nacked record began, by the caller's clock, for
	// Delivery.First of the next ones; 0 if not known.
	First int64
	// Reason is why a record was not acked. It may be nil. It is kept until the record is settled.
	Reason error
	// Hold keeps a rejected record unsettled until Release, since its dead letter must be
	// stored first.
	Hold bool
	// Confirm acks a record that counts as settled only once the ack is stored.
	Confirm bool
	// ByHand means that a person settles it: that does not make the application one that
	// settles late, see Config.Late.
	ByHand bool
}

// Delivery is one handing out of a record. The zero value is ready for Take. It is guarded
// by the lock of its partition. Handle belongs to the caller: this package returns it with
// the delivery and does not use it. There is one per record: its size matters.
type Delivery[R, H any] struct {
	Handle H

	seq      uint64
	offset   int64
	record   R
	lane     *lane        // see Partition.in
	began    atomic.Int64 // 0: no handler has it
	attempt  int32
	at       int32 // its index in Partition.running
	status   Status
	finished bool
	token    bool
	suspect  bool
	evicted  bool
	aside    bool // its letter is refused for good
	noted    bool // its record has notes
}

// Seq, Offset and Attempt do not change after Take. Nor does Record before the
// delivery is finished; from then on see Partition.Record.
func (d *Delivery[R, H]) Seq() uint64   { return d.seq }
func (d *Delivery[R, H]) Offset() int64 { return d.offset }
func (d *Delivery[R, H]) Record() R     { return d.record }
func (d *Delivery[R, H]) Attempt() int  { return int(d.attempt) }

// Begin records that a handler has the record, by Config.Clock. It may be called until the
// delivery is finished.
func (d *Delivery[R, H]) Begin(now int64) { d.began.Store(now) }

// First returns Verdict.First of an earlier delivery of the record, or 0.
func (p *Partition[R, H]) First(d *Delivery[R, H]) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.live(d.seq); e != nil {
		return e.first
	}
	return 0
}

// Status returns what became of the delivery.
func (p *Partition[R, H]) Status(d *Delivery[R, H]) Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status(d)
}

func (p *Partition[R, H]) status(d *Delivery[R, H]) Status {
	if d.status == Pending && p.phase == closed {
		return Revoked
	}
	return d.status
}

// Settle settles a delivery unless it is settled already: the first settlement counts. It
// returns the resulting status and whether this call set it.
func (p *Partition[R, H]) Settle(d *Delivery[R, H], v Verdict, now int64) (status Status, first bool, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first = p.settle(d, &v, now)
	return p.status(d), first, p.work()
}

func (p *Partition[R, H]) settle(d *Delivery[R, H], v *Verdict, now int64) (first bool) {
	if d.status != Pending || p.phase == closed || v.Status == Pending {
		return false
	}
	d.status = v.Status
	e := p.at(d.seq)
	p.changed()
	if d.finished && !v.ByHand {
		p.settledLate()
	}
	if v.Status == Nacked || v.Hold {
		p.tried(d.seq, e, v)
	}
	if p.cfg.Output && v.Status != Acked {
		p.discard(d.seq)
	}
	switch {
	case v.Status == Nacked:
		e.dueAt = v.DueAt
		if e.first == 0 {
			e.first = v.First
		}
		if !d.finished {
			p.set(e, nacked)
			return true
		}
		p.park(d.seq, now)
		p.enqueue(p.in(e.lane))
	case v.Status == Rejected && v.Hold:
		p.set(e, rejecting)
	case v.Confirm:
		p.set(e, confirming)
		p.confirming = append(p.confirming, d.seq)
		p.want(d.seq)
		p.mark(d.seq, e)
	default:
		p.done(d.seq, e)
	}
	return true
}

// settledLate records that the application settles after the handler returned.
func (p *Partition[R, H]) settledLate() {
	if p.cfg.Late != nil {
		p.cfg.Late.Store(true)
	}
}

// done settles a record.
func (p *Partition[R, H]) done(seq uint64, e *entry[R, H]) {
	if e.state != confirming {
		p.mark(seq, e)
	}
	p.dropBytes(e)
	if e.noted {
		delete(p.notes, seq)
		e.noted = false
	}
	if p.cfg.Output {
		p.emit(seq)
	}
	e.letGo()
	p.exit(e)
	p.pass(seq, e)
	if !p.cfg.Committed {
		p.committed = p.head
		p.admit()
	}
}

// letGo separates a record from its delivery. One that is finished needs the record no longer:
// the application may keep it, and with the record the whole fetch.
func (e *entry[R, H]) letGo() {
	if e.d != nil && e.d.finished {
		e.d.drop()
	}
	e.d = nil
}

// FinishAndTake finishes a delivery: its handler returned, and the Router, or whoever reads
// the messages, acked or nacked. It settles the delivery if it is not settled, and hands
// out the next record into next, all under one lock.
func (p *Partition[R, H]) FinishAndTake(d *Delivery[R, H], v *Verdict, now int64, next *Delivery[R, H]) (first, ok bool, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first = p.finish(d, v, now)
	ok = p.take(next)
	return first, ok, p.work()
}

// end removes a delivery from those that run, and gives its place away.
func (p *Partition[R, H]) end(d *Delivery[R, H]) {
	d.finished = true
	n := len(p.running) - 1
	last := p.running[n]
	p.running[d.at], last.at = last, d.at
	p.running[n] = nil
	p.running = p.running[:n]
	p.in(d.lane).inFlight--
	if d.token {
		d.token = false
		p.rare.granted = p.cfg.Limit.release(p.rare.granted)
	}
}

// finish settles a delivery that is not settled, and ends it: its handler has returned. A v of
// nil settles nothing.
func (p *Partition[R, H]) finish(d *Delivery[R, H], v *Verdict, now int64) (first bool) {
	if v == nil {
		v = &Verdict{}
	}
	first = p.settle(d, v, now)
	p.end(d)
	if d.suspect { // the process is alive
		d.suspect = false
		p.suspects--
		if e := p.live(d.seq); e != nil {
			e.suspect = false
		}
	}
	switch {
	case p.phase == closed:
		d.drop()
	case d.status == Pending:
		e := p.at(d.seq)
		p.tried(d.seq, e, v)
		p.set(e, pending)
		p.changed()
		p.open = min(p.open, d.seq)
	case d.status == Nacked:
		p.park(d.seq, now)
	case !p.rejecting(d): // its letter may need the record
		d.drop()
	}
	if p.phase != closed {
		l := p.in(d.lane)
		p.enqueue(l)
		p.release(l)
	}
	d.lane = nil
	return first
}

// Abandon ends a delivery that no handler received, like Return. The slot is asleep afterwards.
func (p *Partition[R, H]) Abandon(d *Delivery[R, H], now int64) Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeBack(d, now)
	p.awake--
	return p.work()
}

// Uncount makes d not count as a delivery: no handler receives it, and its record is given up
// for that reason.
func (p *Partition[R, H]) Uncount(d *Delivery[R, H], reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.attempt--
	d.noted = true
	if e := p.live(d.seq); e != nil {
		e.attempt--
		p.condemn(d.seq, reason)
	}
}

// Release settles a rejected record that was held until its dead letter was stored.
func (p *Partition[R, H]) Release(d *Delivery[R, H]) (ok bool, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ok = p.rejecting(d); ok {
		if d.aside {
			p.naside--
		}
		p.done(d.seq, p.at(d.seq))
	}
	return ok, p.work()
}

// SetAside makes a drain not wait for the letter of a rejected record, because the letter is
// refused for good. The record may still be released.
func (p *Partition[R, H]) SetAside(d *Delivery[R, H]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !d.aside && p.rejecting(d) {
		d.aside = true
		p.naside++
		p.checkDrained()
	}
}

// rejecting reports whether the letter of d is not stored yet.
func (p *Partition[R, H]) rejecting(d *Delivery[R, H]) bool {
	if p.phase == closed {
		return false
	}
	e := p.live(d.seq)
	return e != nil && e.d == d && e.state == rejecting
}
