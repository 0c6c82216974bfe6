package lifecycle_test

import (
	"sync"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

const (
	batchSize     = 20
	batchInterval = 300 * time.Millisecond
	batchWork     = 5 * time.Millisecond
)

// batcher settles late, as an application that writes to a database in batches: a partition's records together, once
// there are enough of them, at intervals, and when the partition drains.
type batcher struct {
	cumulative bool                        // AckCumulative of the last one, in every other partition
	refused    func(d *ackpolicy.Delivery) // called with each ack that was refused
	mu         sync.Mutex
	batches    map[<-chan struct{}]*batch // one per assignment, by its Draining
}

type batch struct {
	b          *batcher
	draining   <-chan struct{}
	mu         sync.Mutex
	deliveries []*ackpolicy.Delivery
}

// add is called at the end of a handler.
func (b *batcher) add(d *ackpolicy.Delivery) {
	draining := d.Draining()
	b.mu.Lock()
	x := b.batches[draining]
	if x == nil {
		x = &batch{b: b, draining: draining}
		if b.batches == nil {
			b.batches = map[<-chan struct{}]*batch{}
		}
		b.batches[draining] = x
		go x.run()
	}
	b.mu.Unlock()

	x.mu.Lock()
	defer x.mu.Unlock()
	x.deliveries = append(x.deliveries, d)
	select {
	case <-draining: // run may have flushed for the last time
		x.flush()
	default:
		if len(x.deliveries) >= batchSize {
			x.flush()
		}
	}
}

func (x *batch) run() {
	ticker := time.NewTicker(batchInterval)
	defer ticker.Stop()
	for draining := false; !draining; {
		select {
		case <-ticker.C:
		case <-x.draining:
			draining = true
		}
		x.mu.Lock()
		x.flush()
		x.mu.Unlock()
	}
	x.b.mu.Lock()
	delete(x.b.batches, x.draining)
	x.b.mu.Unlock()
}

func (x *batch) flush() {
	if len(x.deliveries) == 0 {
		return
	}
	<-time.After(batchWork)
	last := x.deliveries[len(x.deliveries)-1]
	if x.b.cumulative && last.Partition()%2 == 0 {
		if !last.AckCumulative() {
			x.b.refused(last)
		}
	} else {
		for _, d := range x.deliveries {
			if !d.Ack() {
				x.b.refused(d)
			}
		}
	}
	x.deliveries = nil
}
