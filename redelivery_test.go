package ackpolicy_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// How long a nacked record waits.
func TestNackDelay(t *testing.T) {
	t.Parallel()
	const short, long, never = 10 * time.Millisecond, 200 * time.Millisecond, time.Hour
	sleep := func(d time.Duration) change {
		return func(c *ackpolicy.SubscriberConfig) { c.Kafka.NackResendSleep = d }
	}
	backoff := func(d time.Duration) change {
		return func(c *ackpolicy.SubscriberConfig) {
			c.Backoff = func(int, error) time.Duration { return d }
		}
	}
	fails := func(*ackpolicy.Delivery) error { return errBoom }
	cases := []struct {
		name   string
		config change
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
			topic := newTopic(t, 1, numbered(1)...)
			var settled atomic.Int64
			took := make(chan time.Duration, 1)
			s := consume(t, config(brokertest.Group(t), c.config), topic,
				func(_ *message.Message, d *ackpolicy.Delivery) error {
					if d.Attempt() > 1 {
						took <- time.Duration(time.Now().UnixNano() - settled.Load())
						return nil
					}
					settled.Store(time.Now().UnixNano())
					return c.end(d)
				}, ackpolicy.NackOnError.Middleware)
			if got := await(t, "the second delivery", took); got < c.want {
				t.Errorf("delivered again after %v, want %v", got, c.want)
			}
			s.stop()
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
			topic := newTopic(t, 1, keyed("a", "b", "c", "d", "e", "f")...)
			var handled, running atomic.Int32
			enough := make(chan struct{})
			s := consume(t, config(brokertest.Group(t), ordering(o, 8)), topic,
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
					return until(msg.Context(), enough)
				}, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, others+2)
			s.stop()
		})
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	type asked struct {
		attempt int
		err     error
	}
	var mu sync.Mutex
	var got []asked
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
	s := consume(t, config(group, func(c *ackpolicy.SubscriberConfig) {
		c.Backoff = func(attempt int, err error) time.Duration {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, asked{attempt, err})
			return time.Millisecond
		}
	}), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		switch d.Attempt() {
		case 1, 2:
			return errBoom
		case 3:
			d.Nack()
		case 4:
			return ackpolicy.ErrNack
		case 5:
			return ackpolicy.NackAfter(time.Millisecond)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	waitCommitted(t, group, topic, 0, 1)
	s.stop()
	s.journal.want(t, "0#1", "0#2", "0#3", "0#4", "0#5", "0#6")
	if want := []asked{{1, errBoom}, {2, errBoom}, {3, nil}, {4, nil}}; !slices.Equal(got, want) {
		t.Errorf("Backoff was asked for %v, want %v", got, want)
	}
}

// A record that waits for its next delivery holds up no stop.
func TestStopInterruptsADelay(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
	s := consume(t, config(group), topic, func(*message.Message, *ackpolicy.Delivery) error {
		return ackpolicy.NackAfter(time.Hour)
	}, ackpolicy.NackOnError.Middleware)
	d := s.journal.wait(t, 1)
	eventually(t, "the nack", func() bool { return d.Status() == ackpolicy.Nacked })
	started := time.Now()
	s.stop()
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	wantCommitted(t, group, topic, 0, 0)
}

// Every attempt is decoded afresh: what a handler does to a message, the next attempt does not see.
func TestAttemptsDecodeAfresh(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), brokertest.Topic(t)
	check(t, brokertest.CreateTopic(shared.Addrs(), topic, 1))
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: shared.Addrs()}, nil)
	check(t, err)
	sent := message.NewMessage("id", []byte("payload"))
	sent.Metadata.Set("header", "value")
	check(t, publisher.Publish(topic, sent))
	check(t, publisher.Close())

	s := consume(t, config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
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
		return errBoom
	}, ackpolicy.NackOnError.Middleware)
	waitCommitted(t, group, topic, 0, 1)
	s.stop()
}
