package partition

import "sync/atomic"

// Bytes counts the bytes of unsettled records: of a partition, and of all that share Total. A
// nil Bytes does not count.
type Bytes struct {
	own   atomic.Int64
	Total *atomic.Int64 // may be nil
}

// Add changes the count.
func (b *Bytes) Add(n int64) {
	if b == nil {
		return
	}
	b.own.Add(n)
	if b.Total != nil {
		b.Total.Add(n)
	}
}

// Load returns the partition's own count.
func (b *Bytes) Load() int64 { return b.own.Load() }

// Evict pushes records out of memory that wait for long: those whose handler returned
// without settling them, rejected ones whose letter is not stored, those that are due after soon, and those behind them in their lanes. Such a record is read again, and
// restored, when it is handed out.
func (p *Partition[R, H]) Evict(soon int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == closed {
		return
	}
	p.each(p.head, func(_ uint64, e *entry[R, H]) bool {
		if !e.evicted && e.size > 0 && p.waits(e, soon) {
			if e.d != nil {
				e.d.drop()
			}
			p.dropBytes(e)
		}
		return true
	})
}

// drop removes the record from a delivery.
func (d *Delivery[R, H]) drop() {
	var none R
	d.record, d.evicted = none, true
}

// waits reports whether nobody uses the bytes of a record now, or will before soon.
func (p *Partition[R, H]) waits(e *entry[R, H], soon int64) bool {
	switch e.state {
	case pending:
		return true
	case rejecting:
		return e.d.finished // a verb may have rejected it in mid-handler
	case parked, delayed:
		return e.dueAt > soon
	case queued:
		if p.cfg.Order == Unordered || !p.in(e.lane).parkedFirst() {
			return false
		}
		first := p.at(uint64(p.in(e.lane).parked[0]))
		return first.state.timed() && first.dueAt > soon
	}
	return false
}

// dropBytes drops the bytes of a record that is settled or pushed out.
func (p *Partition[R, H]) dropBytes(e *entry[R, H]) {
	if e.evicted {
		return
	}
	var none R
	e.record, e.evicted = none, true
	p.cfg.Bytes.Add(-int64(e.size))
}

// Detach copies records that wait for long: as fetched, each would keep the whole response of
// the broker in memory. It copies records that it finds waiting for the second time, from
// a sequence number on, and stops after most bytes. There may then be more, from next on.
func (p *Partition[R, H]) Detach(from uint64, most, soon int64) (next uint64, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == closed || p.cfg.Detach == nil || p.counts[pending]+p.counts[rejecting] == 0 && len(p.timers) == 0 {
		return 0, false
	}
	p.each(from, func(seq uint64, e *entry[R, H]) bool {
		switch {
		case e.evicted || e.detached || !p.waits(e, soon):
		case !e.met:
			e.met = true
		default:
			e.record, e.detached = p.cfg.Detach(e.record), true
			if e.d != nil {
				e.d.record = e.record
			}
			if most -= int64(e.size); most <= 0 {
				next, more = seq+1, true
			}
		}
		return !more
	})
	return next, more
}

// Evicted reports whether the record of d has to be read again and passed to Restore.
func (d *Delivery[R, H]) Evicted() bool { return d.evicted }

// Restore gives a delivery its record back. If gone is true, record stands in for one that
// is no longer in Kafka, which the next owner will not find.
func (p *Partition[R, H]) Restore(d *Delivery[R, H], record R, gone bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.record, d.evicted = record, false
	if p.phase == closed {
		return
	}
	if e := p.live(d.seq); e != nil && e.d == d && e.evicted {
		e.record, e.evicted, e.detached, e.met = record, false, false, false
		if gone {
			e.print, e.known = 0, true
		}
		p.cfg.Bytes.Add(int64(e.size))
	}
}

// OrderKey returns the key of the lane of a delivery that is not settled; nil if it has none.
func (p *Partition[R, H]) OrderKey(d *Delivery[R, H]) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.live(d.seq); e != nil && p.in(e.lane).keyed {
		return []byte(e.lane.key)
	}
	return nil
}

// Record returns the record of a delivery while its handler runs or it is unsettled. ok is
// false after that, and if the record was pushed out of memory.
func (p *Partition[R, H]) Record(d *Delivery[R, H]) (record R, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return d.record, !d.evicted
}
