package partition

// Take hands out the next deliverable record. A slot that gets none is asleep until Work
// says to wake it.
func (p *Partition[R, H]) Take(d *Delivery[R, H]) (Work, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ok := p.take(d)
	return p.work(), ok
}

// take hands out a record if all of these hold:
//
//  1. The partition hands out records at all: it is running and not paused.
//  2. There is a free place: of MaxInFlight, or of the fewer ones of Careful; and of Limit.
//  3. A record is ready: the first one of a lane that nothing holds. MaxUncommitted keeps
//     records out of the lanes, see admit.
//
// One place beyond those is for the oldest record, see takeOldest.
func (p *Partition[R, H]) take(d *Delivery[R, H]) bool {
	if seq, ok := p.takeReady(); ok {
		p.deliver(d, seq)
		d.token = p.cfg.Limit != nil
		return true
	}
	if seq, ok := p.takeOldest(); ok {
		p.deliver(d, seq)
		return true
	}
	p.awake--
	return false
}

// handsOut reports whether records are handed out now.
func (p *Partition[R, H]) handsOut() bool { return p.phase == running && !p.paused }

// most returns how many deliveries may be unfinished now.
func (p *Partition[R, H]) most() int {
	switch {
	case p.cfg.Careful == 0:
		return p.cfg.MaxInFlight
	case p.suspects > 0:
		return 1
	}
	return min(p.cfg.Careful, p.cfg.MaxInFlight)
}

// takeReady takes a record out of its lane, and a place under the Limit.
func (p *Partition[R, H]) takeReady() (seq uint64, ok bool) {
	if !p.handsOut() || len(p.running) >= p.most() || p.ready.first == nil || !p.cfg.Limit.acquire(&p.waiter) {
		return 0, false
	}
	if seq, ok = p.pop(); !ok && p.cfg.Limit != nil {
		p.rare.granted = p.cfg.Limit.release(p.rare.granted)
	}
	return seq, ok
}

// takeOldest takes the oldest record out of its lane, if oldestTakeable.
func (p *Partition[R, H]) takeOldest() (seq uint64, ok bool) {
	if !p.oldestTakeable() {
		return 0, false
	}
	switch e := p.at(p.head); {
	case e.state == queued:
		p.shift(p.in(e.lane))
	case p.cfg.Order != Unordered: // with Unordered, next skips it
		p.unpark(p.in(e.lane))
	}
	return p.head, true
}

// oldestTakeable reports whether the oldest record may be handed out beyond MaxInFlight,
// because handlers, perhaps all, wait for a commit that needs it to be settled.
func (p *Partition[R, H]) oldestTakeable() bool {
	if !p.handsOut() || !p.waiting || len(p.running) > p.most() || p.head >= p.admitted {
		return false
	}
	e := p.at(p.head)
	return (e.state == queued || e.state == due) && (p.cfg.Order == Unordered || p.in(e.lane).inFlight == 0)
}

// deliver makes d the delivery of a record that was taken out of its lane.
func (p *Partition[R, H]) deliver(d *Delivery[R, H], seq uint64) {
	e := p.at(seq)
	if e.attempt++; e.known {
		p.version++
	}
	d.suspect = e.suspect
	p.set(e, inFlight)
	e.named = false
	e.d = d
	d.noted = e.noted
	p.in(e.lane).inFlight++
	d.seq, d.offset, d.record, d.lane, d.attempt, d.evicted = seq, e.offset, e.record, e.lane, int32(e.attempt), e.evicted
	d.status, d.finished, d.token = Pending, false, false
	d.at = int32(len(p.running))
	p.running = append(p.running, d)
	p.taken = max(p.taken, seq+1)
}

// wake returns how many slots to wake and to start, to look for a record: as many as would find
// one and have a place.
func (p *Partition[R, H]) wake() (idle, start int32) {
	looking := p.awake - len(p.running)
	n := min(p.takeable()-looking, p.most()-p.awake)
	if n > 0 && p.cfg.Limit != nil {
		// One at a time: a slot that takes a record wakes the next, up to the limit.
		n = 0
		if looking == 0 && p.cfg.Limit.room(&p.waiter) {
			n = 1
		}
	}
	if n <= 0 {
		if looking > 0 || p.awake > p.most() || !p.oldestTakeable() {
			return 0, 0
		}
		n = 1
	}
	p.awake += n
	started := max(0, p.awake-p.slots)
	p.slots += started
	p.unused = min(p.unused, p.slots-p.awake)
	return int32(n - started), int32(started)
}

// Spare returns how many slots have been asleep since the last call, all the time. The caller
// ends as many that are asleep: they are no longer woken.
func (p *Partition[R, H]) Spare() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n = p.unused
	p.slots -= n
	p.unused = p.slots - p.awake
	return n
}

// Relax ends Config.Careful. It returns false while there are suspects.
func (p *Partition[R, H]) Relax() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.suspects > 0 {
		return false
	}
	p.cfg.Careful = 0
	return true
}

// Suspects reports whether there are records that an earlier owner had in flight. Each of
// them is to be handled alone.
func (p *Partition[R, H]) Suspects() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.suspects > 0
}

// Name makes the next commit say that d is in flight, and whether alone. It returns which
// commit does. With Careful, earlier commits do not mention d.
func (p *Partition[R, H]) Name(d *Delivery[R, H], alone bool) Mark {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.live(d.seq); e != nil {
		p.know(e)
		p.version++
		if e.named = true; alone {
			e.alone++
		}
	}
	return p.now()
}

// takeable returns how many slots would find a record now, or more.
func (p *Partition[R, H]) takeable() int {
	if p.cfg.Order == Unordered {
		return p.only.n + len(p.redo)
	}
	return p.ready.n
}
