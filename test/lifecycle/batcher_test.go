package lifecycle_test

import (
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// newBatcher acks in batches, in every other partition by the AckCumulative of the last one if cumulative.
func newBatcher(cumulative bool, refused func(d *ackpolicy.Delivery)) *testkit.Batcher {
	return &testkit.Batcher{Size: 20, Interval: 300 * time.Millisecond, Flush: func(ds []*ackpolicy.Delivery) {
		<-time.After(5 * time.Millisecond)
		last := ds[len(ds)-1]
		if cumulative && last.Partition()%2 == 0 {
			if !last.AckCumulative() {
				refused(last)
			}
			return
		}
		for _, d := range ds {
			if !d.Ack() {
				refused(d)
			}
		}
	}}
}
