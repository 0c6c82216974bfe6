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

// Verdict is what a settlement asks for. Its status shows whether an earlier
// settlement was equal to it.
type Verdict struct {
	Status Status // Acked, Nacked, Rejected; Pending settles nothing
	// DueAt is when a nacked record may be delivered again, by the caller's clock.
	DueAt int64
	// First is when the first delivery of a nacked record began, by the caller's clock,
	// for Delivery.First of the next ones. 0: not known.
	First int64
	// Reason is why a record was not acked; may be nil. It is kept until the record is settled.
	Reason error
	// Hold keeps a rejected record unsettled until Release: its dead letter
	// must be stored first.
	Hold bool
	// Confirm acks a record that is not to be handled before the ack is stored: it counts as
	// settled only then.
	Confirm bool
	// Fingerprint is the record's, see Config.Fingerprint. It is of no use where the record
	// is acked and was not Behind.
	Fingerprint uint32
}

// Delivery is one handing out of a record. The zero value is ready for Take.
// It is guarded by its partition's lock. Handle is the caller's own, whose part the
// delivery is: this package hands it back with the delivery, and does not touch it.
type Delivery[R, H any] struct {
	Handle H

	seq       uint64
	offset    int64
	record    R
	lane      *lane
	first     int64
	began     int64
	condemned error
	attempt   int32
	status    Status
	finished  bool
	token     bool
	behind    bool
	suspect   bool
	evicted   bool
	aside     bool // its letter is refused for good

	prev, next *Delivery[R, H]
}

// Behind reports whether an older record was not settled when this one was handed out: once
// it is settled it needs a mark, and the mark its fingerprint.
func (d *Delivery[R, H]) Behind() bool { return d.behind }

// Seq, Offset and Attempt do not change after Take. Nor does Record before the
// delivery is finished; from then on see Partition.Record.
func (d *Delivery[R, H]) Seq() uint64   { return d.seq }
func (d *Delivery[R, H]) Offset() int64 { return d.offset }
func (d *Delivery[R, H]) Record() R     { return d.record }
func (d *Delivery[R, H]) Attempt() int  { return int(d.attempt) }

// Condemned returns why the record is given up without a handler; nil: it is not. See Condemn.
func (d *Delivery[R, H]) Condemned() error { return d.condemned }

// First is what the verdict of an earlier delivery said it is; 0: none did.
func (d *Delivery[R, H]) First() int64 { return d.first }

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

// Settle settles a delivery, unless it is settled already: the first settlement
// wins. It returns the status that holds now and whether this call set it.
func (p *Partition[R, H]) Settle(d *Delivery[R, H], v Verdict, now int64) (status Status, first bool, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	version := p.version
	first, timer := p.settle(d, v, now)
	w = p.after(version)
	w.Timer = w.Timer || timer
	return p.status(d), first, w
}

func (p *Partition[R, H]) settle(d *Delivery[R, H], v Verdict, now int64) (first, timer bool) {
	if d.status != Pending || p.phase == closed || v.Status == Pending {
		return false, false
	}
	d.status = v.Status
	e := p.at(d.seq)
	p.know(e, v)
	if d.finished {
		p.settledLate()
	}
	if v.Status == Nacked || v.Hold {
		p.tried(d.seq, e, v)
	}
	switch {
	case v.Status == Nacked:
		e.dueAt = v.DueAt
		if e.first == 0 {
			e.first = v.First
		}
		if !d.finished {
			p.set(e, nacked)
			return true, false
		}
		timer = p.park(d.seq, now)
		p.enqueue(e.lane)
	case v.Status == Rejected && v.Hold:
		p.set(e, rejecting)
		p.leave(d.seq)
	case v.Confirm:
		p.set(e, confirming)
		p.confirming = append(p.confirming, d.seq)
		p.want(d.seq)
		p.mark(d.seq)
	default:
		p.done(d.seq)
	}
	if d.finished {
		p.settledDrop(d)
	}
	return true, timer
}

// know takes note that a record stays open, or is settled behind one that does. It keeps
// its fingerprint, for when its bytes are gone.
func (p *Partition[R, H]) know(e *entry[R, H], v Verdict) {
	if v.Status == Acked && e.d != nil && !e.d.behind {
		return
	}
	p.version++
	if !e.known {
		e.print, e.known = v.Fingerprint, true
	}
}

// settledLate takes note of a settlement after the handler returned.
func (p *Partition[R, H]) settledLate() {
	if p.cfg.Late != nil {
		p.cfg.Late.Store(true)
	}
}

// done settles a record.
func (p *Partition[R, H]) done(seq uint64) {
	e := p.at(seq)
	p.forget(e)
	p.settledTries(seq)
	if e.state != confirming {
		p.mark(seq)
	}
	e.d = nil
	p.exit(e)
	p.pass(seq)
	if !p.cfg.Committed {
		p.committed = p.head
		p.admit()
	}
}

// after gathers the work of an operation that began with that version.
func (p *Partition[R, H]) after(version uint64) Work {
	p.checkDrained()
	w := p.work()
	w.Moved = p.version != version
	return w
}

// FinishAndTake ends a delivery: its handler returned and the Router, or
// whoever reads the messages, gave its ack or nack. It settles it first if that is
// still to be done, then hands out the next record into next, all under one lock.
func (p *Partition[R, H]) FinishAndTake(d *Delivery[R, H], v Verdict, now int64, next *Delivery[R, H]) (first, ok bool, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	version := p.version
	first, _ = p.settle(d, v, now)
	granted := p.end(d)
	timer := p.finish(d, v, now)
	ok = p.take(next)
	w = p.after(version)
	w.Timer = w.Timer || timer
	w.granted = append(w.granted, granted...)
	return first, ok, w
}

// end takes a delivery out of those that run, and returns whose turn its place is.
func (p *Partition[R, H]) end(d *Delivery[R, H]) (granted []*Waiter) {
	d.finished = true
	p.running.remove(d)
	p.nrunning--
	if d.suspect { // its handler has returned, and the process lives
		d.suspect = false
		p.suspects--
		if e := p.live(d.seq); e != nil {
			e.suspect = false
		}
	}
	d.lane.inFlight--
	if d.token {
		d.token = false
		if next := p.cfg.Limit.release(); next != nil {
			granted = append(granted, next)
		}
	}
	return granted
}

func (p *Partition[R, H]) finish(d *Delivery[R, H], v Verdict, now int64) (timer bool) {
	switch {
	case p.phase == closed:
		d.drop()
	case d.status == Nacked:
		if e := p.live(d.seq); e != nil && e.d == d && e.state == nacked {
			timer = p.park(d.seq, now)
		}
	case d.status == Pending:
		e := p.at(d.seq)
		p.tried(d.seq, e, v)
		p.set(e, pending)
		p.know(e, v)
		p.leave(d.seq)
	}
	if p.phase != closed {
		p.enqueue(d.lane)
		p.release(d.lane)
		p.settledDrop(d)
	}
	d.lane = nil
	return timer
}

// settledDrop takes a finished delivery's record from it, where it needs it no longer:
// the application may keep the delivery, and with the record the whole fetch.
func (p *Partition[R, H]) settledDrop(d *Delivery[R, H]) {
	if d.status == Pending {
		return
	}
	if e := p.live(d.seq); d.status != Rejected || e == nil || e.d != d {
		d.drop()
	}
}

// Abandon ends a delivery that reached nobody, in a drain: it counts as none, and the next
// owner hands the record out. The slot is asleep from then on.
func (p *Partition[R, H]) Abandon(d *Delivery[R, H]) Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	version := p.version
	granted := p.end(d)
	p.awake--
	switch e := p.live(d.seq); {
	case p.phase == closed:
		d.drop()
	case d.status == Pending:
		p.version++
		p.set(e, queued)
		e.d = nil
		if e.attempt--; e.attempt > 0 {
			p.park(d.seq, e.dueAt)
		}
	}
	w := p.after(version)
	w.granted = append(w.granted, granted...)
	return w
}

// Uncount takes back that d is a delivery: it reaches nobody.
func (p *Partition[R, H]) Uncount(d *Delivery[R, H]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.attempt--
	if e := p.live(d.seq); e != nil {
		e.attempt--
	}
}

// Acknowledged is a record that another's cumulative ack settled.
type Acknowledged struct {
	Offset  int64
	Attempt int
}

// AckCumulative acks d, and with it every earlier record that was delivered and
// whose handler does not run now. It returns d's status and those records.
func (p *Partition[R, H]) AckCumulative(d *Delivery[R, H], v Verdict, now int64) (status Status, first bool, acked []Acknowledged, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	version := p.version
	first, _ = p.settle(d, v, now)
	var rejected []uint64 // they stay open until their letters are stored
	for d.status == Acked && p.phase != closed && len(p.open) > 0 && uint64(p.open[0]) < d.seq {
		seq := uint64(p.open.pop())
		e := p.live(seq)
		if e == nil {
			continue
		}
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
	w = p.after(version)
	return p.status(d), first, acked, w
}

// leave enters a record that no handler has into what a cumulative ack may settle.
func (p *Partition[R, H]) leave(seq uint64) {
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
func (p *Partition[R, H]) Release(d *Delivery[R, H]) (ok bool, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	version := p.version
	if ok = p.rejecting(d); ok {
		if d.aside {
			p.naside--
		}
		p.done(d.seq)
		if d.finished {
			d.drop()
		}
	}
	return ok, p.after(version)
}

// SetAside ends a drain's wait for the letter of a rejected record, which is refused
// for good. It may be released nevertheless.
func (p *Partition[R, H]) SetAside(d *Delivery[R, H]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !d.aside && p.rejecting(d) {
		d.aside = true
		p.naside++
		p.checkDrained()
	}
}

// rejecting reports whether d's letter is not stored yet.
func (p *Partition[R, H]) rejecting(d *Delivery[R, H]) bool {
	if p.phase == closed {
		return false
	}
	e := p.live(d.seq)
	return e != nil && e.d == d && e.state == rejecting
}
