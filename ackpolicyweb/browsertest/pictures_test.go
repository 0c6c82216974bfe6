package browsertest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// TestPictures makes the pictures of the documentation, in the directory that ACKPOLICY_PICTURES names.
func TestPictures(t *testing.T) {
	if os.Getenv("ACKPOLICY_PICTURES") == "" {
		t.Skip("ACKPOLICY_PICTURES names no directory")
	}
	const partitions = 8
	testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), "orders", partitions))
	for p := range int32(partitions) {
		var records []brokertest.Record
		for i := range 300 {
			records = append(records, brokertest.KeyValue(fmt.Sprintf("customer-%d", i%40), "{}"))
		}
		testkit.Produce(t, "orders", p, records...)
	}
	cfg := testkit.Config("billing", testkit.Ordering(ackpolicy.OrderByKey, 8), func(c *ackpolicy.SubscriberConfig) {
		c.HandlerSlow = 3 * time.Second
		c.Backoff = ackpolicy.ExponentialBackoff{Initial: time.Second, Max: time.Minute}.Delay
	})
	handle := func(m *message.Message, d *ackpolicy.Delivery) error {
		switch {
		case d.Partition() == 3 && d.Offset() == 117:
			return errors.New("payment provider: charge 117: 422 unknown currency \"XTS\"")
		case d.Partition() == 5 && d.Offset() == 41:
			<-m.Context().Done()
			return context.Cause(m.Context())
		case d.Partition() == 6 && d.Offset() == 203:
			return errors.New("payment provider: 503 Service Unavailable")
		}
		select {
		case <-time.After(time.Duration(20+d.Offset()%50) * time.Millisecond):
		case <-m.Context().Done():
		}
		return nil
	}
	timeline := &ackpolicyweb.Timeline{}
	cfg.Hooks = ackpolicy.JoinHooks(cfg.Hooks, timeline.Hooks())
	sub := consume(t, cfg, "orders", ackpolicy.NackOnError.Middleware, handle)
	b := open(t, ackpolicyweb.Options{
		Subscribers: []ackpolicyweb.Subscriber{sub}, ShowKeys: true, Timeline: timeline, AllowActions: func(*http.Request) string { return "ada" },
	})
	b.size(1180, 1370)
	testkit.Check(t, sub.Pause("ada", "orders", 7))
	b.sees("Slow handler: orders/5@41", "Held: orders/3@117", "attempt 4", "Somebody paused it")
	b.picture("page")
	b.dark(true)
	b.goes("partition?topic=orders&partition=3")
	b.sees("orders/3@117 holds the partition")
	b.size(1180, 1050)
	b.picture("page-partition")
	b.dark(false)
	b.size(390, 844)
	b.goes("")
	b.sees("orders/7")
	b.picture("page-phone")
	b.accessible()
	if wide := eval[int](b, "document.documentElement.scrollWidth"); wide > 390 {
		t.Errorf("a phone has to scroll sideways: %d", wide)
	}
}
