package semantics_test

import (
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// How long a nacked record waits.
func TestNackDelay(t *testing.T) {
	t.Parallel()
	const short, long, never = 10 * time.Millisecond, 200 * time.Millisecond, time.Hour
	sleep := func(d time.Duration) testkit.Option {
		return func(c *ackpolicy.SubscriberConfig) { c.Kafka.NackResendSleep = d }
	}
	backoff := func(d time.Duration) testkit.Option {
		return func(c *ackpolicy.SubscriberConfig) {
			c.Backoff = func(int, error) time.Duration { return d }
		}
	}
	fails := func(*ackpolicy.Delivery) error { return testkit.ErrBoom }
	cases := []struct {
		name   string
		config testkit.Option
		end    func(d *ackpolicy.Delivery) error
		want   time.Duration
	}{
		{"NackResendSleep", sleep(long), fails, long},
		{"NoSleep", sleep(kafka.NoSleep), fails, 0},
		{"Backoff before NackResendSleep", func(c *ackpolicy.SubscriberConfig) { sleep(never)(c); backoff(long)(c) }, fails, long},
		{"NackAfter before Backoff", backoff(never), func(d *ackpolicy.Delivery) error { d.NackAfter(long); return nil }, long},
		{"as a signal", backoff(never), func(*ackpolicy.Delivery) error { return ackpolicy.NackAfter(long) }, long},
		{"Nack, then NackAfter", sleep(short), func(d *ackpolicy.Delivery) error { d.Nack(); d.NackAfter(never); return nil }, short},
		{"NackAfter, then Nack", sleep(short), func(d *ackpolicy.Delivery) error { d.NackAfter(long); d.Nack(); return nil }, long},
		{"NackAfter, then a signal", sleep(never), func(d *ackpolicy.Delivery) error { d.NackAfter(long); return ackpolicy.ErrNack }, long},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			var settled atomic.Int64
			took := make(chan time.Duration, 1)
			s := testkit.Consume(t, testkit.Config(brokertest.Group(t), c.config), topic,
				func(_ *message.Message, d *ackpolicy.Delivery) error {
					if d.Attempt() > 1 {
						took <- time.Duration(time.Now().UnixNano() - settled.Load())
						return nil
					}
					settled.Store(time.Now().UnixNano())
					return c.end(d)
				}, ackpolicy.NackOnError.Middleware)
			if got := testkit.Await(t, "the second delivery", took); got < c.want {
				t.Errorf("delivered again after %v, want %v", got, c.want)
			}
			s.Stop()
		})
	}
}

// The delay counts from the settlement, but the next delivery never starts before the handler has finished.
func TestNackedRecordWaitsForItsHandler(t *testing.T) {
	t.Parallel()
	const others = 5
	for _, o := range []ackpolicy.Ordering{ackpolicy.OrderByKey, ackpolicy.Unordered} {
		t.Run(fmt.Sprint(o), func(t *testing.T) {
			t.Parallel()
			topic := testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "c", "d", "e", "f")...)
			var handled, running atomic.Int32
			enough := make(chan struct{})
			s := testkit.Consume(t, testkit.Config(brokertest.Group(t), testkit.Ordering(o, 8)), topic,
				func(msg *message.Message, d *ackpolicy.Delivery) error {
					if d.Offset() > 0 {
						if handled.Add(1) == others {
							close(enough)
						}
						return nil
					}
					if running.Add(1) > 1 {
						t.Error("two handlers of one record at the same time")
					}
					defer running.Add(-1)
					if d.Attempt() > 1 {
						return nil
					}
					d.NackAfter(0)
					return testkit.Until(msg.Context(), enough)
				}, ackpolicy.NackOnError.Middleware)
			s.Wait(t, others+2)
			s.Stop()
		})
	}
}

// A record that waits for its next delivery delays no stop.
func TestStopInterruptsADelay(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	s := testkit.Consume(t, testkit.Config(group), topic, func(*message.Message, *ackpolicy.Delivery) error {
		return ackpolicy.NackAfter(time.Hour)
	}, ackpolicy.NackOnError.Middleware)
	d := s.Wait(t, 1)
	testkit.Eventually(t, "the nack", func() bool { return d.Status() == ackpolicy.Nacked })
	started := time.Now()
	s.Stop()
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	testkit.WantCommitted(t, group, topic, 0, 0)
}

// Every attempt is decoded afresh: what a handler does to a message, the next attempt does not see.
func TestAttemptsDecodeAfresh(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), brokertest.Topic(t)
	testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), topic, 1))
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: testkit.Shared.Addrs()}, nil)
	testkit.Check(t, err)
	sent := message.NewMessage("id", []byte("payload"))
	sent.Metadata.Set("header", "value")
	testkit.Check(t, publisher.Publish(topic, sent))
	testkit.Check(t, publisher.Close())

	s := testkit.Consume(t, testkit.Config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if !msg.Equals(sent) {
			t.Errorf("attempt %d: %s %s %v", d.Attempt(), msg.UUID, msg.Payload, msg.Metadata)
		}
		if d.Attempt() == 3 {
			return nil
		}
		msg.UUID = "changed"
		msg.Metadata.Set("header", "changed")
		msg.Metadata.Set("reason", "leaked")
		msg.Payload = []byte("changed")
		return testkit.ErrBoom
	}, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 1)
	s.Stop()
}

// The longest delay there is does not overflow: the record does not come again.
func TestNackForEver(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(200)...)
	s := testkit.Consume(t, testkit.Config(group, testkit.Ordering(ackpolicy.Unordered, 1)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return ackpolicy.NackAfter(math.MaxInt64)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 200)
	s.Stop()
	for _, d := range s.All() {
		if d.Attempt() > 1 {
			t.Fatalf("%s", testkit.Name(d))
		}
	}
}
