package partition

import "slices"

// Open is a record that was delivered and is not settled.
type Open struct {
	Offset   int64
	Attempts int   // deliveries so far
	DueAt    int64 // when it may be delivered again, in Unix nanoseconds; 0: at once
	First    int64 // when its first delivery began, by the caller's clock; 0: not known
	// Check is a number of the record by which it is known again: another record at the
	// same offset, in a log that was cut or made again, has another one.
	Check uint16
}

// inherit gives a record that is pushed what an earlier owner left of it.
func (p *Partition[R]) inherit(seq uint64) {
	e := p.at(seq)
	for len(p.inherited) > 0 && p.inherited[0].Offset < e.offset {
		p.inherited = p.inherited[1:] // the log holds it no longer
	}
	if len(p.inherited) == 0 || p.inherited[0].Offset != e.offset {
		return
	}
	open := p.inherited[0]
	p.inherited = p.inherited[1:]
	if p.cfg.Check(e.record) != open.Check {
		return
	}
	e.attempt, e.dueAt, e.first = open.Attempts, open.DueAt, open.First
	p.know(e, open.Check)
	p.known = append(p.known, seq)
}

// know takes note that a record stays open. It keeps its check, for when its bytes are gone.
func (p *Partition[R]) know(e *entry[R], check uint16) {
	p.changes++
	if !e.checked {
		e.check, e.checked = check, true
	}
}

// MaxOpen is how many records Unsettled returns.
const MaxOpen = 512

// Unsettled returns records that were delivered and are not settled, in no order: those
// that were nacked or rejected, those whose handler returned, and those that an earlier
// owner had. One in its first delivery is not among them. Of more than MaxOpen it
// returns some.
func (p *Partition[R]) Unsettled() []Open {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.unsettled
	}
	return p.collect()
}

func (p *Partition[R]) collect() []Open {
	var open []Open
	add := func(seq uint64, states ...state) {
		if seq < p.head || len(open) == MaxOpen {
			return
		}
		e := p.at(seq)
		if !e.checked || e.attempt == 0 || !slices.Contains(states, e.state) {
			return
		}
		o := Open{Offset: e.offset, Attempts: e.attempt, First: e.first, Check: e.check}
		if e.state == parked || e.state == nacked || e.state == queued {
			o.DueAt = e.dueAt
		}
		open = append(open, o)
	}
	for d := p.running.first; d != nil; d = d.next {
		add(d.seq, inFlight, nacked)
	}
	for _, seq := range p.open {
		add(uint64(seq), pending, parked, due, rejecting)
	}
	for _, seq := range p.known {
		add(seq, queued)
	}
	return append(open, p.inherited[:min(len(p.inherited), MaxOpen-len(open))]...)
}
