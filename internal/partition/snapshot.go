package partition

import (
	"math/bits"
	"slices"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// Mark is a watermark that can be committed.
type Mark struct {
	Offset int64  // what to commit
	Seq    uint64 // records below it are covered
	// Version grows with whatever a commit would store, including the marks above Offset.
	Version uint64
}

// Mark returns the watermark.
func (p *Partition[R, H]) Mark() Mark {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now()
}

func (p *Partition[R, H]) now() Mark {
	return Mark{Offset: p.watermark, Seq: p.front, Version: p.version}
}

const (
	// blocks is approximately the number of blocks that the marks of a snapshot are divided
	// into. A record that has changed costs the next owner one block.
	blocks = 32
	// MaxOpen and maxRuns limit a snapshot. More of either would not fit into a commit.
	MaxOpen = 1024
	maxRuns = 16 << 10
	// step is how many chunks are processed while the lock is held once.
	step = 64
)

// Snapshot is what a commit stores of a partition. Without Config.Output it is not of one
// moment: a record that was settled while it was made may be in it or not.
type Snapshot struct {
	Mark
	Blocks []ledger.Block
	Open   []Open // in order of offset
	Last   bool   // it was made after Close

	counts  []int    // by block: its records in the window
	wanted  []wanted // by sequence number
	reverts uint64
	stored  int
	left    int
	output  []parcel // what was ready
}

type wanted struct {
	chunk uint64 // the sequence number of its first record
	marks uint64
	block int // -1 if it is not kept
}

// Snapshot returns what to store now.
func (p *Partition[R, H]) Snapshot() *Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &Snapshot{
		Mark: p.now(), Last: p.phase == closed, reverts: p.reverts,
		output: slices.Clone(p.out.ready), // Drop may come before they are sent
	}
	first := p.front / span
	end := max(p.high, p.taken)
	w := walk[R, H]{p: p, s: s, per: max(1, ((end+span-1)/span-first)/blocks)}
	for at := first; at*span < end; at++ {
		// What an earlier owner left must not move meanwhile.
		if !p.cfg.Output && (at-first)%step == step-1 && len(p.inherited.blocks)+len(p.inherited.open) == 0 {
			p.mu.Unlock()
			p.mu.Lock()
			at = max(at, p.head/span) // what is settled meanwhile is left to the next commit
			if p.chunks == nil || at*span >= end {
				break
			}
		}
		if w.runs < maxRuns {
			w.chunk(at)
		} else {
			s.left += bits.OnesCount64(p.chunk(at * span).marked)
		}
	}
	w.endBlock()
	for _, b := range p.inherited.blocks {
		b.Rank = ledger.Promised // perhaps
		s.Blocks = append(s.Blocks, b)
		s.counts = append(s.counts, 0)
	}
	s.Open = append(s.Open, p.inherited.open[:min(len(p.inherited.open), max(0, MaxOpen-len(s.Open)))]...)
	return s
}

// walk builds the blocks of a snapshot.
type walk[R, H any] struct {
	p      *Partition[R, H]
	s      *Snapshot
	per    uint64 // chunks per block
	chunks uint64 // in the current block
	block  ledger.Block
	count  int
	next   uint64 // the record after the last run, if that can be extended
	runs   int
}

// chunk adds the marks of a chunk from the watermark of the snapshot on.
func (w *walk[R, H]) chunk(at uint64) {
	p, c, seq := w.p, w.p.chunk(at*span), at*span
	ran := ^uint64(0) // the records that are in a run
	if c.entries == nil {
		w.run(seq, c.first, c.last, span)
		w.block.Sum += c.sum
	} else {
		ran = 0
		for i := range min(span, p.tail-seq) {
			e, bit := &c.entries[i], uint64(1)<<i
			switch {
			case seq+i < w.s.Seq:
			case c.marked&bit == 0:
				if o := p.asOpen(seq+i, e); e.known && (o.Attempts > 0 || o.Rejected != nil) && (len(w.s.Open) < MaxOpen || o.InFlight) {
					w.s.Open = append(w.s.Open, o)
				}
			case e.known: // otherwise it was the oldest one, and is below the front by now
				w.run(seq+i, e.offset, e.offset, 1)
				w.block.Sum += e.print
				ran |= bit
			}
		}
	}
	if ran &= c.wanted; ran != 0 {
		w.s.wanted = append(w.s.wanted, wanted{seq, ran, len(w.s.Blocks)})
		w.block.Rank = max(w.block.Rank, ledger.Awaited)
	}
	if c.promised != 0 {
		w.block.Rank = ledger.Promised
	}
	if w.chunks++; w.chunks >= w.per {
		w.endBlock()
	}
}

// asOpen returns what to store about an open record. With Careful, only a delivery that was
// named counts, and is in flight, since no handler gets it before.
func (p *Partition[R, H]) asOpen(seq uint64, e *entry[R, H]) Open {
	careful := p.cfg.Careful > 0
	o := Open{Offset: e.offset, Attempts: e.attempt, First: e.first, Check: uint16(e.print)}
	switch e.state {
	case inFlight:
		if careful && !e.named {
			o.Attempts--
		}
		o.InFlight = !careful || e.named
	case parked, nacked, queued:
		o.DueAt = e.dueAt
	}
	if o.InFlight = o.InFlight || e.suspect; o.InFlight {
		o.Alone = int(e.alone)
	}
	if e.noted {
		n := p.notes[seq]
		o.Rejected, o.Asked, o.Err = n.condemned, n.asked, n.lastErr()
	}
	return o
}

// run marks n records from a sequence number on, with the offsets from first to last.
func (w *walk[R, H]) run(seq uint64, first, last int64, n int) {
	if k := len(w.block.Runs); k > 0 && w.next == seq {
		w.block.Runs[k-1].To = last + 1
	} else {
		w.block.Runs = append(w.block.Runs, ledger.Run{From: first, To: last + 1})
		w.runs++
	}
	w.next = seq + uint64(n)
	w.count += n
}

func (w *walk[R, H]) endBlock() {
	if w.count > 0 {
		w.s.Blocks = append(w.s.Blocks, w.block)
		w.s.counts = append(w.s.counts, w.count)
	}
	w.block, w.chunks, w.count = ledger.Block{}, 0, 0
}

// Keep records which blocks are stored, by index.
func (s *Snapshot) Keep(kept []bool) {
	for i, n := range s.counts {
		switch {
		case kept[i]:
			s.stored += n
		case n > 0:
			s.left += n
		default: // of records that have not come yet: an upper bound
			for _, r := range s.Blocks[i].Runs {
				s.left += int(r.To - r.From)
			}
		}
	}
	for i, w := range s.wanted {
		if w.block >= len(kept) || !kept[w.block] {
			s.wanted[i].block = -1
		}
	}
}

// Covers reports whether what is stored says that a record is settled. Above the watermark
// it only knows records that somebody wanted when the snapshot was made.
func (s *Snapshot) Covers(seq uint64) bool {
	if seq < s.Seq {
		return true
	}
	i, found := slices.BinarySearchFunc(s.wanted, seq/span*span, func(w wanted, chunk uint64) int { return int(w.chunk - chunk) })
	return found && s.wanted[i].block >= 0 && s.wanted[i].marks&(1<<(seq%span)) != 0
}

// Left returns how many settled records are not covered because there was no room.
func (s *Snapshot) Left() int { return s.left }

// Want gives the mark of a record precedence if a commit has little room: somebody waits
// until it is stored, or relies on it.
func (p *Partition[R, H]) Want(d *Delivery[R, H]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.seq >= p.head {
		p.want(d.seq)
	}
}

func (p *Partition[R, H]) want(seq uint64) {
	if c, bit := p.chunk(seq), uint64(1)<<(seq%span); c.wanted&bit == 0 {
		c.wanted |= bit
		p.version++
	}
}

// Unconfirm takes the ack of a record back that was to be confirmed and was never sent.
func (p *Partition[R, H]) Unconfirm(seq uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.confirming, seq); i >= 0 {
		p.confirming = slices.Delete(p.confirming, i, i+1)
		e := p.at(seq)
		p.set(e, inFlight)
		e.attempt--
		p.unmark(seq)
	}
}

// Reverted reports whether something that a snapshot says was taken back since.
func (p *Partition[R, H]) Reverted(s *Snapshot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reverts != s.reverts
}

// Committed records that a snapshot is stored, which makes room under MaxUncommitted.
// waiting says that it had no room for marks that handlers wait for, who then wait until
// older records are settled.
func (p *Partition[R, H]) Committed(s *Snapshot, waiting bool) Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.put(len(s.output))
	if p.phase == closed {
		return Work{}
	}
	p.waiting = waiting
	p.confirming = slices.DeleteFunc(p.confirming, func(seq uint64) bool {
		confirmed := s.Covers(seq)
		if confirmed {
			e := p.at(seq)
			e.d.Begin(p.clock()) // its handler begins now
			p.done(seq, e)
		}
		return confirmed
	})
	for _, w := range s.wanted {
		if w.block >= 0 && w.chunk+span > p.head {
			p.chunk(w.chunk).promised |= w.marks
		}
	}
	if p.cfg.Committed && s.Seq >= p.committed {
		p.committed, p.stored = s.Seq, max(0, s.stored-p.ahead)
		p.uncovered = p.uncommitted(p.taken)
		p.admit()
	}
	return p.work()
}

// Skip moves the watermark past offsets without a record (control records, aborted records,
// what compaction removed), from the next offset on. It returns false, and changes nothing,
// if a record is not settled, or was pushed since the caller read the next offset.
func (p *Partition[R, H]) Skip(from, to int64) (Work, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == closed || p.head != p.tail || p.watermark != from || to <= from {
		return Work{}, false
	}
	i := &p.inherited
	for len(i.blocks) > 0 && i.blocks[0].Runs[0].From < to {
		p.decide(false)
	}
	for len(i.open) > 0 && i.open[0].Offset < to {
		i.open = i.open[1:]
	}
	p.watermark, p.next = to, to
	p.changed()
	return p.work(), true
}
