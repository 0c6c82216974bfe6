package partition

// Evict pushes records out of memory that wait for long: nacked ones whose time
// comes after soon, and those behind them in their lanes. It stops once want
// bytes are freed and answers how many were. Whoever is handed such a record
// reads it again and restores it. One that its handler left pending stays: the
// application holds its Delivery, and with it the bytes.
func (p *Partition[R]) Evict(want int64, soon int64) (freed int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0
	}
	// The youngest first: they wait longest.
	for seq := p.tail; seq != p.head && freed < want; {
		seq--
		e := p.at(seq)
		if e.evicted || e.size == 0 || !p.waits(e, soon) {
			continue
		}
		p.evict(e)
		freed += int64(e.size)
	}
	return freed
}

func (p *Partition[R]) waits(e *entry[R], soon int64) bool {
	switch e.state {
	case parked:
		return e.dueAt > soon
	case queued:
		if e.lane == nil || p.cfg.Order == Unordered || len(e.lane.parked) == 0 {
			return false
		}
		first := p.at(e.lane.parked[0])
		return first.state == parked && first.dueAt > soon
	}
	return false
}

func (p *Partition[R]) evict(e *entry[R]) {
	if e.evicted {
		return
	}
	var none R
	e.record, e.evicted = none, true
	if p.cfg.Bytes != nil {
		p.cfg.Bytes.Add(-int64(e.size))
	}
}

// Evicted tells that the record of d has to be read again and given to Restore.
func (d *Delivery[R]) Evicted() bool { return d.evicted }

// Restore gives a delivery its record back.
func (p *Partition[R]) Restore(d *Delivery[R], record R) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.record, d.evicted = record, false
	if p.closed || d.seq < p.head {
		return
	}
	if e := p.at(d.seq); e.d == d && e.evicted {
		e.record, e.evicted = record, false
		if p.cfg.Bytes != nil {
			p.cfg.Bytes.Add(int64(e.size))
		}
	}
}
