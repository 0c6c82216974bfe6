package partition

import (
	"cmp"
	"slices"
)

// Acknowledged is a record that a cumulative ack settled together with another one.
type Acknowledged struct {
	Offset  int64
	Attempt int
}

// AckCumulative acks d, and every earlier record that is pending or waits after a nack. It
// returns the status of d, and those records.
func (p *Partition[R, H]) AckCumulative(d *Delivery[R, H], v Verdict, now int64) (status Status, first bool, acked []Acknowledged, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	version := p.version
	ready := len(p.out.ready)
	first = p.settle(d, &v, now)
	var kept []uint64 // these stay open
	for d.status == Acked && p.phase != closed && len(p.open) > 0 && uint64(p.open[0]) < d.seq {
		seq := uint64(p.open.pop())
		e := p.live(seq)
		if e == nil {
			continue
		}
		e.open = false
		l := p.in(e.lane)
		switch e.state {
		case pending:
			e.d.status = Acked
			e.d.drop()
			p.settledLate()
		case parked, due:
			if p.cfg.Order != Unordered {
				if uint64(l.parked[0]) != seq { // an earlier owner did not honour the delay of the first one
					kept = append(kept, seq)
					continue
				}
				p.unpark(l)
			}
		case rejecting: // until its letter is stored
			kept = append(kept, seq)
			continue
		default:
			continue
		}
		acked = append(acked, Acknowledged{e.offset, e.attempt})
		p.done(seq, e)
		p.enqueue(l)
	}
	for _, seq := range kept {
		p.leave(seq)
	}
	// The output of d was made ready before that of the earlier records.
	slices.SortStableFunc(p.out.ready[ready:], func(a, b parcel) int { return cmp.Compare(a.seq, b.seq) })
	w = p.after(version)
	return p.status(d), first, acked, w
}

// leave adds a record without a running handler to what a cumulative ack may settle.
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
