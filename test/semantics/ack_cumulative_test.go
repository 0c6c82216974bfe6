package semantics_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// AckCumulative takes with it what is pending or waits after a nack, and leaves what runs.
func TestAckCumulative(t *testing.T) {
	t.Parallel()
	const running, pending, parked, last, other = 0, 1, 2, 4, 1
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 2, testkit.Numbered(last+1)...)
	release := make(chan struct{})
	s := testkit.Consume(t, testkit.Config(group, testkit.Ordering(ackpolicy.Unordered, 8)), topic,
		func(msg *message.Message, d *ackpolicy.Delivery) error {
			switch {
			case d.Partition() == other:
				return d.AckSync(msg.Context())
			case d.Offset() == running:
				if err := testkit.Until(msg.Context(), release); err != nil {
					return err
				}
				return ackpolicy.ErrAck
			case d.Offset() == parked:
				return ackpolicy.NackAfter(time.Hour)
			}
			return nil
		}, ackpolicy.Manual.Middleware)
	s.Wait(t, last+1)
	byOffset := map[int64]*ackpolicy.Delivery{}
	for _, d := range s.All() {
		byOffset[d.Offset()] = d
	}
	testkit.Eventually(t, "the nack", func() bool { return byOffset[parked].Status() == ackpolicy.Nacked })

	// A handler that has just returned may not have finished yet: then its record keeps its own verdict, which is none.
	testkit.Eventually(t, "all that was pending is acked", func() bool {
		return byOffset[last].AckCumulative() && byOffset[pending].Status() == ackpolicy.Acked &&
			byOffset[last-1].Status() == ackpolicy.Acked
	})
	if status := byOffset[running].Status(); status != ackpolicy.Pending {
		t.Errorf("the running one: %v", status)
	}
	// A commit of the other partition after that would have taken this one along.
	testkit.Produce(t, topic, other, testkit.Numbered(1)...)
	testkit.WaitCommitted(t, group, topic, other, 1)
	testkit.WantCommitted(t, group, topic, 0, 0)

	close(release)
	testkit.WaitCommitted(t, group, topic, 0, last+1)
	s.Stop()
	if n := len(s.All()); n != last+2 {
		t.Errorf("%d deliveries, want %d: %v", n, last+2, s.Names())
	}
}
