package partition

import "github.com/ackpolicy/watermill-ackpolicy/internal/ledger"

// Open describes a record that was delivered, or condemned, and is not settled.
type Open struct {
	Offset   int64
	Attempts int   // deliveries so far
	DueAt    int64 // when it may be delivered again, by the caller's clock; 0 for at once
	First    int64 // when its first delivery began, by the caller's clock; 0 if not known
	// InFlight reports that a handler has it, or had it when an earlier owner died. Alone is
	// how often it was handed out alone for that reason, with Config.Careful.
	InFlight bool
	Alone    int
	Rejected error // why it is given up, see Condemn; nil if it is not
	Asked    int64 // see Partition.Ask; 0 if not known
	Err      error // of the last delivery; nil if not known
	// Check is the low half of its fingerprint, which differs for another record at the same
	// offset, in a log that was cut or created again.
	Check uint16
}

// inherited has what an earlier owner stored about records that have not come yet, and the
// block of marks that is being read. The marks of a block hold once all of its records have
// come and are the same as when it was stored. Until then none of them is settled, and
// nothing is handed out from the first of them on.
type inherited struct {
	blocks []ledger.Block
	open   []Open

	reading bool   // blocks[0]
	first   uint64 // its first record
	sum     uint32 // of the fingerprints of those that came
}

// from returns the first record that waits for a block, or tail if none does.
func (i *inherited) from(tail uint64) uint64 {
	if i.reading {
		return i.first
	}
	return tail
}

// inherit applies what an earlier owner stored about a record that is pushed.
func (p *Partition[R, H]) inherit(seq uint64) {
	i, e := &p.inherited, p.at(seq)
	for len(i.open) > 0 && i.open[0].Offset < e.offset {
		i.open = i.open[1:] // it is no longer in the log
	}
	if len(i.open) > 0 && i.open[0].Offset == e.offset {
		o := i.open[0]
		i.open = i.open[1:]
		if p.know(e); uint16(e.print) != o.Check { // another record
			e.print, e.known = 0, false
		} else {
			if o.Attempts > 0 || o.Rejected != nil {
				e.attempt, e.dueAt, e.first = o.Attempts, o.DueAt, o.First
			}
			if o.Rejected != nil || o.Asked > 0 {
				p.note(seq, notes{condemned: o.Rejected, asked: o.Asked})
			}
			if o.Err != nil {
				p.addTry(seq, Try{Attempt: o.Attempts, Err: o.Err})
			}
			p.high = max(p.high, seq+1)
			if o.InFlight && p.cfg.Careful > 0 {
				e.suspect, e.alone = true, uint16(min(o.Alone, 1<<16-1))
				p.suspects++
			}
		}
	}
	for len(i.blocks) > 0 && i.blocks[0].End() <= e.offset { // its last record is no longer in the log
		p.decide(i.reading && i.sum == i.blocks[0].Sum) // unless that was gone already when the block was stored
	}
	if _, marked := ledger.Marked(i.blocks[:min(1, len(i.blocks))], e.offset); !marked {
		return
	}
	if !i.reading {
		i.reading, i.first, i.sum = true, seq, 0
	}
	p.know(e)
	i.sum += e.print
	p.set(e, unverified)
	p.dropBytes(e)
	if b := &i.blocks[0]; e.offset+1 == b.End() {
		p.decide(i.sum == b.Sum)
	}
}

// decide ends the reading of a block: either its marks hold, or its records are delivered.
func (p *Partition[R, H]) decide(valid bool) {
	i := &p.inherited
	b := &i.blocks[0]
	if !valid {
		p.rare.doubted = append(p.rare.doubted, ledger.Run{From: b.Runs[0].From, To: b.End()})
	}
	first := i.from(p.tail)
	i.blocks, i.reading = i.blocks[1:], false
	p.version++
	for seq := first; seq < p.tail; seq++ {
		switch e := p.at(seq); {
		case e.state != unverified:
		case valid:
			p.ahead++
			p.exit(e)
			c, bit := p.chunk(seq), uint64(1)<<(seq%span)
			c.wanted, c.promised = c.wanted|bit, c.promised|bit // somebody may rely on it
			p.mark(seq, e)
			p.pass(seq, e)
		default:
			p.set(e, queued)
		}
	}
}

// Inherits returns the offset after the block that is being read, or -1 if there is none.
func (p *Partition[R, H]) Inherits() (end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.inherited.reading {
		return -1
	}
	return p.inherited.blocks[0].End()
}

// Doubt gives up the remaining marks: their records do not come, or there is no room to wait
// for them.
func (p *Partition[R, H]) Doubt() Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := &p.inherited; len(i.blocks) > 0; {
		p.decide(false)
	}
	p.admit()
	return p.work()
}
