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

// TestPicturesOfFaults makes those of docs/operations.md: what the page says of each fault.
func TestPicturesOfFaults(t *testing.T) {
	if os.Getenv("ACKPOLICY_PICTURES") == "" {
		t.Skip("ACKPOLICY_PICTURES names no directory")
	}
	var network brokertest.Network
	errProvider := errors.New("payment provider: charge 117: 422 unknown currency \"XTS\"")
	fail := func(*message.Message, *ackpolicy.Delivery) error { return errProvider }
	leave := func(*message.Message, *ackpolicy.Delivery) error { return nil }
	for _, f := range []struct {
		name, topic string
		policy      ackpolicy.Policy
		option      testkit.Option
		handle      testkit.Handle // of record 117, and with "bound" of all behind it
		pause       bool
		sees        string
	}{
		{"slow-handler", "orders", ackpolicy.NackOnError, func(c *ackpolicy.SubscriberConfig) { c.HandlerSlow = 3 * time.Second },
			func(m *message.Message, _ *ackpolicy.Delivery) error {
				return testkit.Until(m.Context(), make(chan struct{}))
			}, false, "Slow handler: orders/0@117"},
		{"poison", "payments", ackpolicy.NackOnError, fiveTimes, fail, false, "5 deliveries have not settled it"},
		{"dead-letter", "invoices", ackpolicy.RejectOnError, func(c *ackpolicy.SubscriberConfig) { c.DeadLetter = down{} }, fail, false, "Dead letter: invoices/0@117"},
		{"bound", "shipments", ackpolicy.Manual, func(c *ackpolicy.SubscriberConfig) { c.MaxUncommitted = 100 }, leave, false, "Bound reached: shipments/0"},
		{"pending", "reviews", ackpolicy.Manual, nil, leave, false, "Pending: reviews/0@117"},
		{"paused", "refunds", ackpolicy.Ack, nil, fail, true, "Somebody paused it"},
		{"outage", "stock", ackpolicy.Ack, func(c *ackpolicy.SubscriberConfig) { network.Use(c.Kafka.OverwriteSaramaConfig) }, fail, false, "Kafka: stock"},
	} {
		t.Run(f.name, func(t *testing.T) {
			var records []brokertest.Record
			for i := range 300 {
				records = append(records, brokertest.KeyValue(fmt.Sprintf("customer-%d", i%40), "{}"))
			}
			testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), f.topic, 1))
			testkit.Produce(t, f.topic, 0, records...)
			options := []testkit.Option{testkit.Ordering(ackpolicy.OrderByKey, 8)}
			if f.option != nil {
				options = append(options, f.option)
			}
			sub := consume(t, testkit.Config("billing", options...), f.topic, f.policy.Middleware, func(m *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == 117 || f.name == "bound" && d.Offset() > 117 {
					return f.handle(m, d)
				}
				d.Ack()
				return nil
			})
			b := open(t, ackpolicyweb.Options{
				Subscribers: []ackpolicyweb.Subscriber{sub}, ShowKeys: true, AllowActions: func(*http.Request) string { return "ada" },
			})
			b.size(1000, 290)
			testkit.Eventually(t, "the consumer", func() bool { st := sub.State(); return len(st.Subscriptions[0].Partitions) == 1 })
			switch {
			case f.pause:
				testkit.Check(t, sub.Pause("ada", f.topic, 0))
			case f.name == "outage":
				network.Cut()
				defer network.Heal()
			case f.name == "pending": // for a minute
				eval[bool](b, "new Promise(done => setTimeout(() => done(true), 40000))")
			}
			b.sees(f.sees)
			b.picture("fault-" + f.name)
		})
	}
}
