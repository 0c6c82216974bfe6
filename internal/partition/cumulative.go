package partition

// Acknowledged is a record that a cumulative ack settled together with another one.
type Acknowledged struct {
	Offset  int64
	Attempt int
}

// AckCumulative acks d, and every earlier record that is pending or waits after a nack. It
// returns the status of d, and those records.
func (p *Partition[R, H]) AckCumulative(d *Delivery[R, H]) (status Status, first bool, acked []Acknowledged, w Work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase != closed && (d.status == Pending || d.status == Acked) {
		acked = p.ackBefore(d.seq)
	}
	first = p.settle(d, &Verdict{Status: Acked}, 0)
	return p.status(d), first, acked, p.work()
}

// ackBefore acks the records before one that are pending or wait after a nack.
func (p *Partition[R, H]) ackBefore(end uint64) (acked []Acknowledged) {
	open := end // the first that stays open
	p.each(p.open, func(seq uint64, e *entry[R, H]) bool {
		l := p.in(e.lane)
		switch {
		case seq >= end:
			return false
		case e.state == pending:
			e.d.status = Acked
			p.settledLate()
		case e.attempt > 0 && (e.state == parked || e.state == due):
			if p.cfg.Order != Unordered {
				if uint64(l.parked[0]) != seq { // an earlier owner did not honour the delay of the first one
					open = min(open, seq)
					return true
				}
				p.unpark(l)
			}
		default:
			return true
		}
		acked = append(acked, Acknowledged{e.offset, e.attempt})
		p.done(seq, e)
		p.enqueue(l)
		return true
	})
	p.open = max(p.open, open)
	return acked
}
