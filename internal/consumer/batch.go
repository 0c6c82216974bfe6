package consumer

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// Batches makes a Subscription hand its records out in batches.
type Batches struct {
	Size         int           // the most records of a batch
	Bytes        int           // the most bytes, but for a single record; see record.Size
	Wait         time.Duration // how long the first record waits for others
	Concurrency  int           // how many batches are with handlers at once
	OnePartition bool          // a batch has records of one partition only
	// New returns deliveries like Config.NewDelivery.
	New  func(n int) []*Delivery
	Task BatchTask
}

// BatchTask is what the application does with batches. Batchers call it, several at once. Of a
// delivery's Task they call Gone, GiveUp and Finished, and the drain calls Cancel and UnderWay.
type BatchTask interface {
	// Decode decodes the record of a delivery. If ok is false, v settles it, see Task.Run.
	Decode(d *Delivery, copies *record.Copies) (v *partition.Verdict, ok bool)
	// Run is Task.Run for a batch, in the order of its records within each partition: it sets
	// their verdicts. It calls stop when nobody takes the batch at once, for a channel that is
	// closed when a partition drains.
	Run(batch []BatchEnd, stop func() (<-chan struct{}, func())) (sent bool)
}

// BatchEnd is the end of a delivery of a batch.
type BatchEnd = partition.End[*sarama.ConsumerMessage, Task]

// Return, as a BatchEnd.Verdict, says that the handler has not had the record: it is handed out
// again, and this delivery does not count.
var Return = new(partition.Verdict)

// handle is a delivery as its partition knows it.
type handle = partition.Delivery[*sarama.ConsumerMessage, Task]

// filling is a batch that is being filled or was.
type filling struct {
	parts   []part
	n, size int
}

// part is what a batch has of a claim. In a sealed batch it is in the order of the records.
type part struct {
	claim *Claim
	ds    []*handle
}

// batcher is one of the goroutines that fill batches and hand them out. One at a time fills.
type batcher struct {
	*base
	cfg    *Batches
	spare  []*handle // deliveries without a record
	linger *time.Timer
	copies record.Copies
	left   []part // what is not finished of the batch that it hands out
}

// batching is what the batchers of a subscription share.
type batching struct {
	turn chan struct{} // held by the one that fills
	more chan struct{} // a token: it is to look for records
	over chan struct{} // closed when no claim is left
	all  sync.WaitGroup
}

func newBatching() batching {
	return batching{turn: make(chan struct{}, 1), more: make(chan struct{}, 1), over: make(chan struct{})}
}

// startBatchers starts the goroutines that hand batches out. stop ends them, once no claim is left.
func (s *base) startBatchers() (stop func()) {
	if s.cfg.Batches == nil {
		return func() {}
	}
	for range s.cfg.Batches.Concurrency {
		b := &batcher{base: s, cfg: s.cfg.Batches, linger: time.NewTimer(time.Hour)}
		b.linger.Stop()
		s.batching.all.Add(1)
		go b.run()
	}
	return func() {
		close(s.batching.over)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.batching.all.Wait()
		}()
		wait.For(callPatience, ended) // one may be in code of the application, which its claims have named
	}
}

func (b *batcher) run() {
	returned := false
	defer func() {
		if !returned { // application code ended this goroutine (runtime.Goexit): start another one in its place
			b.failLeft()
			b.batching.all.Add(1)
			go b.run()
		}
		b.batching.all.Done()
	}()
	for {
		x, ok := b.collect()
		if !ok {
			returned = true
			return
		}
		b.left = x.parts
		b.serve(&x)
		b.left = nil
	}
}

// failLeft nacks what is left of a batch whose goroutine ends.
func (b *batcher) failLeft() {
	again := &partition.Verdict{Status: partition.Nacked, DueAt: Now() + int64(exitedPause)}
	for _, p := range b.left {
		var ends []BatchEnd
		for _, d := range p.ds {
			ends = append(ends, BatchEnd{Delivery: d, Verdict: again})
		}
		p.claim.endBatch(ends)
	}
	b.left = nil
}

// collect fills a batch until it is full, has waited, or a partition of it drains. It returns
// false at the end.
func (b *batcher) collect() (x filling, ok bool) {
	select {
	case b.batching.turn <- struct{}{}:
		defer func() { <-b.batching.turn }()
	case <-b.batching.over:
		return x, false
	}
	defer b.linger.Stop()
	for waiting, waited := false, b.cfg.Wait <= 0; ; {
		full := b.fill(&x)
		if x.n > 0 && (full || waited || x.drains()) {
			x.seal()
			return x, true
		}
		if x.n > 0 && !waiting {
			waiting = true
			b.linger.Reset(b.cfg.Wait)
		}
		select {
		case <-b.batching.more:
		case <-b.linger.C:
			waited = true
		case <-b.batching.over:
			return x, false
		}
	}
}

// fill adds what is ready to a batch, and returns whether it is full.
func (b *batcher) fill(x *filling) (full bool) {
	claims := b.assigned() // in random order, so that none is always the last
	if len(x.parts) > 0 {
		if first := x.parts[0].claim; b.cfg.OnePartition || first.careful.Load() {
			claims = []*Claim{first}
		}
	}
	for _, c := range claims {
		alone := c.careful.Load() // it has batches of its own
		if alone && x.n > 0 && x.parts[0].claim != c {
			continue
		}
		n, full := b.fillFrom(c, x, len(claims))
		switch {
		case full, n > 0 && alone:
			return true
		case n > 0 && b.cfg.OnePartition:
			return false
		}
	}
	return false
}

// fillFrom adds what is ready in one of so many claims. It returns how much, and whether the
// batch is full.
func (b *batcher) fillFrom(c *Claim, x *filling, claims int) (n int, full bool) {
	for {
		room := b.cfg.Size - x.n
		some := min(room, spareDeliveries)
		b.prepareSpare(some)
		took, size, crowded := c.part.Collect(b.spare[:some], room, b.cfg.Bytes-x.size, x.n == 0, claims)
		x.add(c, b.spare[:took], size)
		b.spare = slices.Delete(b.spare, 0, took)
		n += took
		if crowded || x.n == b.cfg.Size {
			return n, true
		}
		if took < some {
			return n, false
		}
	}
}

// spareDeliveries is how many deliveries are prepared before it is known how many records are
// ready: the size of a batch may only be there to be large.
const spareDeliveries = 512

// prepareSpare makes n deliveries that have no record.
func (b *batcher) prepareSpare(n int) {
	if n -= len(b.spare); n > 0 {
		for _, d := range b.cfg.New(n) {
			b.spare = append(b.spare, &d.Delivery)
		}
	}
}

// add adds deliveries of a claim.
func (x *filling) add(c *Claim, ds []*handle, size int) {
	if len(ds) == 0 {
		return
	}
	for _, d := range ds {
		d.Handle.Delivery().claim = c
	}
	x.n += len(ds)
	x.size += size
	for i := range x.parts {
		if p := &x.parts[i]; p.claim == c {
			p.ds = append(p.ds, ds...)
			return
		}
	}
	x.parts = append(x.parts, part{c, slices.Clone(ds)})
}

// drains reports whether a partition of the batch drains.
func (x *filling) drains() bool {
	return slices.ContainsFunc(x.parts, func(p part) bool { return p.claim.drains() })
}

func (c *Claim) drains() bool {
	select {
	case <-c.draining:
		return true
	default:
		return false
	}
}

func bySeq(a, b *handle) int { return cmp.Compare(a.Seq(), b.Seq()) }

// seal ends the filling. Lanes hand records out in turn: the batch has them in their own order.
func (x *filling) seal() {
	for _, p := range x.parts {
		if !slices.IsSortedFunc(p.ds, bySeq) {
			slices.SortFunc(p.ds, bySeq)
		}
		p.claim.part.Seal(p.ds)
	}
}
