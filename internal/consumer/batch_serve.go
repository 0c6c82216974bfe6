package consumer

import (
	"sync"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// flushPatience is for how long a batch is offered once a partition of it drains: a Router takes
// it at once, a loop that is busy may not come back in time.
const flushPatience = 100 * time.Millisecond

// serve hands a batch out and finishes its deliveries.
func (b *batcher) serve(x *filling) {
	batch := make([]BatchEnd, 0, x.n)
	for i := range x.parts {
		p := &x.parts[i]
		p.ds = b.prepare(p)
		for _, d := range p.ds {
			batch = append(batch, BatchEnd{Delivery: d})
		}
	}
	if len(batch) == 0 {
		return
	}
	if c := x.parts[0].claim; c.careful.Load() {
		leave, ok := c.name(x.parts[0].ds...)
		if !ok {
			b.putBack(x)
			return
		}
		defer leave()
	}
	if !b.cfg.Task.Run(batch, x.stop) {
		b.putBack(x)
		return
	}
	for i := range x.parts {
		p := &x.parts[i]
		n := len(p.ds)
		p.end(batch[:n])
		batch, p.ds = batch[n:], nil
	}
}

// prepare decodes the records of a part. It finishes those that no handler is to have, and
// returns the others.
func (b *batcher) prepare(p *part) []*handle {
	c := p.claim
	keep := make([]*handle, 0, len(p.ds))
	var early []BatchEnd
	var back []*handle
	began := time.Now()
	for i, h := range p.ds {
		d := h.Handle.Delivery()
		if i > 0 && c.pace.interval.Load() > 0 && time.Since(began) > max(b.cfg.Wait, time.Second) {
			back = append(back, p.ds[i:]...) // a rate limit: the batch goes out with what it has
			break
		}
		if c.waitsFor(d, early) {
			back = append(back, h)
			continue
		}
		v, out, ok := b.prepareOne(d)
		if !ok { // draining, and it had to be read again
			back = append(back, p.ds[i:]...)
			break
		}
		if out {
			keep = append(keep, h)
		} else {
			early = append(early, BatchEnd{Delivery: h, Verdict: v})
		}
	}
	c.endBatch(early)
	c.giveBack(back)
	return keep
}

// waitsFor reports whether a record comes after one of its lane that is nacked.
func (c *Claim) waitsFor(d *Delivery, before []BatchEnd) bool {
	for _, e := range before {
		if e.Verdict != nil && e.Verdict.Status == partition.Nacked && c.part.SameLane(e.Delivery, &d.Delivery) {
			return true
		}
	}
	return false
}

// SameLane reports whether the records of two deliveries are handled one after the other. Both
// must be unfinished.
func SameLane(a, b *Delivery) bool {
	return a.claim == b.claim && a.claim.part.SameLane(&a.Delivery, &b.Delivery)
}

// prepareOne decodes a record. out reports that a handler is to have it; otherwise the verdict
// settles it. ok is false if the partition drains.
func (b *batcher) prepareOne(d *Delivery) (v *partition.Verdict, out, ok bool) {
	if over, ok := d.claim.load(d, &b.copies); over || !ok {
		return v, false, ok
	}
	if over, ok := d.claim.admit(d); over || !ok {
		return v, false, ok
	}
	v, out = b.cfg.Task.Decode(d, &b.copies)
	return v, out, true
}

// stop returns a channel that is closed soon after the first partition of the batch begins to
// drain. done ends the wait.
func (x *filling) stop() (stop <-chan struct{}, done func()) {
	stopped, over := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var waiting sync.WaitGroup
	for _, p := range x.parts {
		if len(p.ds) == 0 {
			continue
		}
		waiting.Go(func() {
			select {
			case <-p.claim.draining:
			case <-over:
				return
			}
			if wait.For(flushPatience, over) {
				once.Do(func() { close(stopped) })
			}
		})
	}
	return stopped, func() {
		close(over)
		waiting.Wait()
	}
}

// putBack returns a batch that nobody has taken.
func (b *batcher) putBack(x *filling) {
	for i := range x.parts {
		p := &x.parts[i]
		p.claim.giveBack(p.ds)
		p.ds = nil
	}
}

// giveBack returns records that no handler had.
func (c *Claim) giveBack(ds []*handle) {
	if len(ds) == 0 {
		return
	}
	c.do(c.part.Return(ds, Now()))
	for _, d := range ds {
		if f := d.Handle.Delivery().fate.Load(); f != nil && f.reject != nil { // by hand, meanwhile
			_, _, w := c.part.Condemn(d.Offset(), f.reject, Now())
			c.do(w)
		}
		d.Handle.Finished()
	}
}

// end finishes the deliveries of a part. It changes ends.
func (p *part) end(ends []BatchEnd) {
	all := ends[:0]
	var back []*handle
	for _, e := range ends {
		if e.Verdict == Return {
			back = append(back, e.Delivery)
		} else {
			all = append(all, e)
		}
	}
	p.claim.endBatch(all)
	p.claim.giveBack(back)
}

// endBatch finishes deliveries, which are in the order of their records.
func (c *Claim) endBatch(ends []BatchEnd) {
	if len(ends) == 0 {
		return
	}
	c.do(c.part.EndBatch(ends, Now()))
	for _, e := range ends {
		e.Delivery.Handle.Finished()
	}
}
