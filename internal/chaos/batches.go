package chaos

import (
	"sync"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

const (
	batchSize     = 10
	batchInterval = 200 * time.Millisecond
)

// batches settle late, as an application that writes to a database in batches: an assignment's records together, once
// there are enough of them, at intervals, and when the partition drains.
type batches struct {
	mu  sync.Mutex
	all map[<-chan struct{}]*batch // by Draining, one per assignment
}

type batch struct {
	w          *worker
	mu         sync.Mutex
	deliveries []*ackpolicy.Delivery
}

// add is called at the end of a handler, which has not returned.
func (b *batches) add(w *worker, d *ackpolicy.Delivery) {
	draining := d.Draining()
	b.mu.Lock()
	x := b.all[draining]
	if x == nil {
		if b.all == nil {
			b.all = map[<-chan struct{}]*batch{}
		}
		x = &batch{w: w}
		b.all[draining] = x
		go b.run(x, draining)
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

func (b *batches) run(x *batch, draining <-chan struct{}) {
	ticker := time.NewTicker(batchInterval)
	defer ticker.Stop()
	for ended := false; !ended; {
		select {
		case <-ticker.C:
		case <-draining:
			ended = true
		}
		x.mu.Lock()
		x.flush()
		x.mu.Unlock()
	}
	b.mu.Lock()
	delete(b.all, draining)
	b.mu.Unlock()
}

// flush acks by the last one in every other partition, where records end in their order.
func (x *batch) flush() {
	if len(x.deliveries) == 0 {
		return
	}
	last := x.deliveries[len(x.deliveries)-1]
	if x.w.spec.Ordering == ackpolicy.OrderByPartition && last.Partition()%2 == 0 {
		x.w.call(last, ackCumulative, last.AckCumulative)
	} else {
		for _, d := range x.deliveries {
			x.w.call(d, ack, d.Ack)
		}
	}
	x.deliveries = nil
}
