package testkit

import (
	"sync"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Batcher settles late, as an application that writes to a database in batches: an assignment's records together, once there
// are enough of them, at intervals, and when the partition drains.
type Batcher struct {
	Size     int
	Interval time.Duration
	Flush    func(ds []*ackpolicy.Delivery)

	mu      sync.Mutex
	batches map[<-chan struct{}]*batch // one per assignment, by its Draining
}

type batch struct {
	b          *Batcher
	draining   <-chan struct{}
	mu         sync.Mutex
	deliveries []*ackpolicy.Delivery
}

// Add is called at the end of a handler, which has not returned.
func (b *Batcher) Add(d *ackpolicy.Delivery) {
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
		if len(x.deliveries) >= b.Size {
			x.flush()
		}
	}
}

func (x *batch) run() {
	ticker := time.NewTicker(x.b.Interval)
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
	if len(x.deliveries) > 0 {
		x.b.Flush(x.deliveries)
		x.deliveries = nil
	}
}
