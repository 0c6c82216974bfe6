package partition

import "math/bits"

// span is how many records a chunk holds.
const span = 64

// chunk is a part of the window: the records with the same quotient of sequence number and
// span.
type chunk[R, H any] struct {
	entries  *[span]entry[R, H] // nil once all are settled
	marked   uint64             // one bit for each settled or confirming record
	wanted   uint64             // marked records that somebody wants to be stored, or relies on
	promised uint64             // marked records that were reported as stored, so that somebody relies on them
	settled  int                // how many are settled
	sum      uint32             // of the fingerprints of marked records
	first    int64              // the offsets of the first and last record, if all are settled
	last     int64
}

type entry[R, H any] struct {
	offset  int64
	record  R
	lane    *lane  // see Partition.in
	next    uint64 // the next of its lane, as seq+1; 0 if there is none
	dueAt   int64
	first   int64 // when its first delivery began; 0 if not known
	since   int64 // when it entered its state, by Config.Clock
	size    int
	attempt int
	state   state
	suspect bool   // one of Partition.suspects
	named   bool   // in flight, and a commit may say so
	alone   uint16 // see Open.Alone
	known   bool   // print is valid
	noted   bool   // it is in Partition.notes
	print   uint32 // see Config.Fingerprint
	// The record was pushed out of memory; was copied; was found waiting. See evict.go.
	evicted, detached, met bool
	d                      *Delivery[R, H] // the latest delivery while it is unsettled
}

func (p *Partition[R, H]) chunk(seq uint64) *chunk[R, H] {
	return &p.chunks[seq/span&uint64(len(p.chunks)-1)]
}

// at returns an unsettled record.
func (p *Partition[R, H]) at(seq uint64) *entry[R, H] {
	return &p.chunk(seq).entries[seq%span]
}

// live returns a record of the window, or nil if it is settled.
func (p *Partition[R, H]) live(seq uint64) *entry[R, H] {
	if seq < p.head || p.chunk(seq).entries == nil {
		return nil
	}
	if e := p.at(seq); e.state != settled {
		return e
	}
	return nil
}

// append adds a queued record, which the caller describes.
func (p *Partition[R, H]) append() (seq uint64, e *entry[R, H]) {
	seq = p.tail
	if seq%span == 0 {
		if seq/span-p.head/span == uint64(len(p.chunks)) {
			p.grow()
		}
		entries, ok := p.spares.Get().(*[span]entry[R, H])
		if !ok {
			entries = new([span]entry[R, H])
		}
		*p.chunk(seq) = chunk[R, H]{entries: entries}
	}
	e = p.at(seq)
	e.since = p.clock()
	p.counts[queued]++
	p.tail++
	return seq, e
}

// free releases the entries of a chunk.
func (p *Partition[R, H]) free(c *chunk[R, H]) {
	clear(c.entries[:])
	p.spares.Put(c.entries)
	c.entries = nil
}

func (p *Partition[R, H]) grow() {
	chunks := make([]chunk[R, H], 2*len(p.chunks))
	for at := p.head / span; at*span < p.tail; at++ {
		chunks[at&uint64(len(chunks)-1)] = *p.chunk(at * span)
	}
	p.chunks = chunks
}

// know keeps the fingerprint of a record, because a commit is to say something about it. It
// reports whether it is news.
func (p *Partition[R, H]) know(e *entry[R, H]) bool {
	if e.known || e.evicted || !p.cfg.Committed {
		return false
	}
	e.print, e.known = p.cfg.Fingerprint(e.record), true
	return true
}

// changed takes note that a commit would say something else now.
func (p *Partition[R, H]) changed() {
	p.version++
	p.flags |= Moved
}

// mark makes the next commits say that a record is settled. They say so of the oldest one by
// their offset, which needs no fingerprint.
func (p *Partition[R, H]) mark(seq uint64, e *entry[R, H]) {
	if seq != p.head {
		p.know(e)
	}
	c := p.chunk(seq)
	c.marked |= 1 << (seq % span)
	c.sum += e.print
	p.high = max(p.high, seq+1)
	p.changed()
	if seq == p.front {
		p.advance()
	}
}

// unmark takes a mark back.
func (p *Partition[R, H]) unmark(seq uint64) {
	c, e := p.chunk(seq), p.at(seq)
	c.marked &^= 1 << (seq % span)
	c.sum -= e.print
	p.version++
	p.reverts++
	if seq < p.front {
		p.front, p.watermark = seq, e.offset
	}
}

// advance moves the front, and with it the watermark, past marked records.
func (p *Partition[R, H]) advance() {
	for p.front < p.tail {
		c := p.chunk(p.front)
		if c.entries == nil {
			p.watermark, p.front = c.last+1, (p.front/span+1)*span
			continue
		}
		n := uint64(bits.TrailingZeros64(^(c.marked >> (p.front % span))))
		if n == 0 {
			return
		}
		p.front = min(p.front+n, (p.front/span+1)*span)
		p.watermark = c.entries[(p.front-1)%span].offset + 1
	}
}

// pass settles a record that has its mark, and moves the start of the window past settled records.
func (p *Partition[R, H]) pass(seq uint64, e *entry[R, H]) {
	c := p.chunk(seq)
	p.set(e, settled)
	p.moved = e.since
	if c.settled++; c.settled == span {
		c.first, c.last = c.entries[0].offset, c.entries[span-1].offset
		p.free(c)
	}
	for p.head < p.tail {
		c := p.chunk(p.head)
		if c.entries == nil {
			p.head = (p.head/span + 1) * span
			continue
		}
		if c.entries[p.head%span].state != settled {
			return
		}
		p.head++
	}
}
