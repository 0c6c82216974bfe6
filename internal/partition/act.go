package partition

// Retry makes a record deliverable now that waits for its next delivery or is pending. It
// returns the state that the record was in. ok is false if that is another one, or the
// record is not in the window.
func (p *Partition[R, H]) Retry(offset, now int64) (was State, ok bool, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	seq, e := p.find(offset)
	if e == nil {
		return settled, false, Work{}
	}
	was = e.state
	switch was {
	case parked, delayed:
		p.changed()
		e.dueAt = now
		p.fallDue(seq)
	case due:
	case queued: // held back: it waits for its delay once it is admitted
		if e.dueAt == 0 {
			return was, false, Work{}
		}
		p.changed()
		e.dueAt = 0
	case pending:
		p.settle(e.d, &Verdict{Status: Nacked, DueAt: now, ByHand: true}, now)
	default:
		return was, false, Work{}
	}
	return was, true, p.work()
}

// Condemn gives up a record that no handler has: its next delivery, which is due at once, is
// Condemned. A record with a handler, or a pending one, has to be settled by the caller: d is
// its delivery. ok is false if the record is not in the window, or is rejected already.
func (p *Partition[R, H]) Condemn(offset int64, reason error, now int64) (d *Delivery[R, H], ok bool, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	seq, e := p.find(offset)
	if e == nil {
		return nil, false, Work{}
	}
	switch e.state {
	case inFlight, pending:
		return e.d, true, Work{}
	case rejecting, confirming, unverified:
		return nil, false, Work{}
	case queued:
		e.dueAt = 0
	case nacked:
		e.dueAt = now
	case parked, delayed:
		e.dueAt = now
		p.fallDue(seq)
	}
	p.know(e) // if its bytes are gone, the next owner is not told
	p.high = max(p.high, seq+1)
	p.changed()
	p.condemn(seq, reason)
	return nil, true, p.work()
}

// SetMaxInFlight changes Config.MaxInFlight. It must not exceed the configured number, for
// which slots were made.
func (p *Partition[R, H]) SetMaxInFlight(n int) Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cfg.MaxInFlight = n
	return p.work()
}

// Pause stops or resumes the handing out of records. It does not delay a drain.
func (p *Partition[R, H]) Pause(paused bool) Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = paused
	return p.work()
}
