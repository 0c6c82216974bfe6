package partition

// notes are what few records have, until they are settled.
type notes struct {
	tries     []Try // the first and the latest ones
	condemned error // why it is given up at its next delivery, see Condemn
	asked     int64 // see Ask
}

// Try is an earlier delivery of a record that is not settled.
type Try struct {
	Attempt      int
	Began, Ended int64 // by Config.Clock; Began is 0 if it is not known
	Err          error // why it did not settle the record; may be nil
}

// mostTries is how many deliveries of a record are remembered, and mostTried of how many records
// they are, because errors may be large and nacked records many.
const (
	mostTries = 4
	mostTried = 1024
)

// note replaces the notes on an unsettled record.
func (p *Partition[R, H]) note(seq uint64, n notes) {
	p.notes[seq] = n
	p.at(seq).noted = true
}

// tried records a delivery that did not settle its record. It is called before the state
// of the record changes.
func (p *Partition[R, H]) tried(seq uint64, e *entry[R, H], v *Verdict) {
	p.know(e)
	n := p.notes[seq]
	if n.condemned != nil {
		return // it was none
	}
	if last := len(n.tries) - 1; last >= 0 && n.tries[last].Attempt == e.attempt { // settled after its handler returned
		if v.Reason != nil {
			n.tries[last].Err = v.Reason
		}
		return
	}
	try := Try{Attempt: e.attempt, Ended: p.clock(), Err: v.Reason}
	if e.state == inFlight {
		try.Began = e.since
	}
	p.addTry(seq, try)
}

func (p *Partition[R, H]) addTry(seq uint64, try Try) {
	n := p.notes[seq]
	if len(n.tries) == 0 && len(p.notes) >= mostTried {
		return
	}
	if len(n.tries) >= mostTries {
		n.tries = append(n.tries[:1], n.tries[2:]...)
	}
	n.tries = append(n.tries, try)
	p.note(seq, n)
}

// lastErr returns the error of the last delivery; nil if it is not known.
func (n *notes) lastErr() error {
	if len(n.tries) == 0 {
		return nil
	}
	return n.tries[len(n.tries)-1].Err
}

// condemn makes the next delivery of a record Condemned.
func (p *Partition[R, H]) condemn(seq uint64, reason error) {
	n := p.notes[seq]
	n.condemned = reason
	p.note(seq, n)
}

// Condemned returns why the record is given up without a handler, or nil. See Condemn.
func (p *Partition[R, H]) Condemned(d *Delivery[R, H]) error {
	if !d.noted {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.notes[d.seq].condemned
}

// Ask keeps, for the next deliveries of a record that is about to be nacked, the delay that its
// message asks for.
func (p *Partition[R, H]) Ask(d *Delivery[R, H], delay int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.live(d.seq); e == nil || e.d != d || p.phase == closed {
		return
	}
	n := p.notes[d.seq]
	n.asked = delay
	p.note(d.seq, n)
	p.version++
}

// Asked returns what was passed to Ask at an earlier delivery of the record, or 0.
func (p *Partition[R, H]) Asked(d *Delivery[R, H]) int64 {
	if !d.noted {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.notes[d.seq].asked
}
