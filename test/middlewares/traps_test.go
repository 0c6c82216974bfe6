package middlewares_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/sony/gobreaker"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// What docs/middlewares.md says besides its tables.

// InstantAck outside finishes the delivery before the handler has begun: its context has ended, and the next record of the
// partition comes while it runs.
func TestInstantAckOutsideLosesTheOrder(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	second := make(chan struct{})
	afterwards := func(h message.HandlerFunc) message.HandlerFunc { // the subscriber may notice the ack later than the handler begins
		return func(msg *message.Message) ([]*message.Message, error) {
			<-msg.Context().Done()
			return h(msg)
		}
	}
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			close(second)
			return nil
		}
		testkit.Await(t, "the second record, while the first is handled", second)
		return testkit.ErrBoom
	}, middleware.InstantAck, afterwards, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 2)
	s.Stop()
	if all := s.All(); len(all) != 2 { // the one that failed is lost
		t.Errorf("deliveries: %v", s.Names())
	}
}

// Inside of a policy, it does not: the delivery is finished when the handler is.
func TestInstantAckInsideKeepsTheOrder(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	var begun atomic.Int32
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t)), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if begun.Add(1); d.Offset() == 0 {
			testkit.Eventually(t, "the ack", func() bool { return d.Status() == ackpolicy.Acked })
			if err := msg.Context().Err(); err != nil || begun.Load() != 1 {
				t.Errorf("context: %v, handlers begun: %d", err, begun.Load())
			}
		}
		return nil
	}, ackpolicy.NackOnError.Middleware, middleware.InstantAck)
	s.Wait(t, 2)
	s.Stop()
}

// A Timeout outside of ConfirmFirst is spent on the commit; one inside is the handler's own. The broker is one in the
// process: it has to refuse commits for a while.
func TestTimeoutAndConfirmFirst(t *testing.T) {
	t.Parallel()
	short, long := middleware.Timeout(20*time.Millisecond), middleware.Timeout(time.Minute)
	for _, c := range []struct {
		name  string
		mw    []message.HandlerMiddleware
		spent bool
	}{
		{"outside", []message.HandlerMiddleware{short, testkit.ConfirmFirst}, true},
		{"inside", []message.HandlerMiddleware{testkit.ConfirmFirst, long}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t)
			topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(1)...)
			testkit.RefuseCommits(broker, 3)
			spent := make(chan bool, 1)
			s := testkit.Consume(t, testkit.Config(brokertest.Group(t), at), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
				spent <- msg.Context().Err() != nil
				return nil
			}, c.mw...)
			if got := testkit.Await(t, "the handler", spent); got != c.spent {
				t.Errorf("no time left for the handler: %v", got)
			}
			s.Stop()
		})
	}
}

// ConfirmFirst stands being run again on one delivery.
func TestConfirmFirstAgain(t *testing.T) {
	t.Parallel()
	retry := middleware.Retry{MaxRetries: 1, InitialInterval: time.Millisecond}.Middleware
	for name, outside := range map[string]message.HandlerMiddleware{
		"Retry": retry, "Duplicator": middleware.Duplicator, "InstantAck": middleware.InstantAck,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			s := testkit.Consume(t, testkit.Config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				stored, err := brokertest.Committed(testkit.Shared.Addrs(), group, topic, 0)
				if err != nil || stored != 1 {
					t.Errorf("stored: %d, %v", stored, err)
				}
				if d.Status() != ackpolicy.Acked {
					t.Errorf("status: %v", d.Status())
				}
				return testkit.ErrBoom
			}, outside, testkit.ConfirmFirst)
			s.Wait(t, 1)
			s.Stop()
			if tries := len(s.All()); (tries == 2) != (name == "Retry") {
				t.Errorf("the handler ran %d times", tries)
			}
		})
	}
}

// Records that an open breaker refuses use their deliveries up, in either order.
func TestOpenBreakerAndMaxDeliveries(t *testing.T) {
	t.Parallel()
	ours := ackpolicy.Middleware{
		Policy:   ackpolicy.NackOnError,
		Classify: func(err error) (ackpolicy.Policy, bool) { return ackpolicy.NackOnError, unavailable(err) },
	}.Middleware
	for _, outside := range []bool{true, false} {
		b := middleware.NewCircuitBreaker(gobreaker.Settings{ReadyToTrip: func(gobreaker.Counts) bool { return true }}).Middleware
		mw := []message.HandlerMiddleware{b, ours}
		name := "ours inside"
		if outside {
			mw, name = []message.HandlerMiddleware{ours, b}, "ours outside"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
			rejected := make(chan ackpolicy.SettledEvent, 2)
			asked := make(chan error, 10)
			s := testkit.Consume(t, testkit.Config(group, func(c *ackpolicy.SubscriberConfig) {
				c.MaxDeliveries = 3
				c.Backoff = func(_ int, err error) time.Duration { asked <- err; return time.Millisecond }
				c.Hooks.Settled = func(e ackpolicy.SettledEvent) {
					if e.Status == ackpolicy.Rejected {
						rejected <- e
					}
				}
			}), topic, func(*message.Message, *ackpolicy.Delivery) error { return testkit.ErrBoom }, mw...)
			for offset := range int64(2) {
				if e := testkit.Await(t, "a reject", rejected); e.Offset != offset || e.Attempt != 3 {
					t.Errorf("%+v", e)
				}
			}
			s.Stop()
			s.Want(t, "0#1") // of record 1 the handler never knew
			testkit.WantCommitted(t, group, topic, 0, 2)
			<-asked
			if err := testkit.Await(t, "Backoff", asked); errors.Is(err, gobreaker.ErrOpenState) != outside {
				t.Errorf("Backoff was asked for %v", err)
			}
		})
	}
}

// byRecord passes a record that comes again, and drops a duplicate at another offset.
func TestDeduplicatorByRecord(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, brokertest.Values("a", "b", "a", "c")...)
	repository, err := middleware.NewMapExpiringKeyRepository(time.Minute)
	testkit.Check(t, err)
	d := &middleware.Deduplicator{Repository: byRecord{repository}, Timeout: time.Second}
	s := testkit.Consume(t, testkit.Config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 && d.Attempt() < 3 {
			return testkit.ErrBoom
		}
		return nil
	}, d.Middleware, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 4)
	s.Stop()
	s.Want(t, "0#1", "0#2", "0#3", "1#1", "3#1")
}

// Why the page has another hash.
func TestAdlerCollides(t *testing.T) {
	hash := middleware.NewMessageHasherAdler32(0)
	one, err := hash(message.NewMessage("", []byte("aca")))
	testkit.Check(t, err)
	other, err := hash(message.NewMessage("", []byte("bab")))
	testkit.Check(t, err)
	if one != other {
		t.Error("it distinguishes aca and bab")
	}
}

func TestIgnoreErrorsKnowsNoWrapping(t *testing.T) {
	h := middleware.NewIgnoreErrors([]error{testkit.ErrBoom}).Middleware(func(*message.Message) ([]*message.Message, error) {
		return nil, fmt.Errorf("order 7: %w", testkit.ErrBoom)
	})
	if _, err := h(message.NewMessage("", nil)); err == nil {
		t.Error("it sees through the wrapping")
	}
}

// A Retry that waits is a handler that runs: a stop waits for it until DrainTimeout, and leaves the record.
func TestRetryHoldsTheDrain(t *testing.T) {
	t.Parallel()
	const drain = 300 * time.Millisecond
	retry := middleware.Retry{MaxRetries: 1, InitialInterval: time.Hour, MaxInterval: time.Hour, Multiplier: 1}.Middleware
	for name, mw := range map[string][]message.HandlerMiddleware{
		"ours outside": {ackpolicy.RejectOnError.Middleware, retry},
		"ours inside":  {retry, ackpolicy.RejectOnError.Middleware},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			s := testkit.Consume(t, testkit.Config(group, testkit.DrainTimeout(drain)), topic,
				func(*message.Message, *ackpolicy.Delivery) error { return testkit.ErrBoom }, mw...)
			d := s.Wait(t, 1)
			started := time.Now()
			s.Stop()
			if took := time.Since(started); took < drain {
				t.Errorf("stopped after %v", took)
			}
			if d.Status() != ackpolicy.Revoked {
				t.Errorf("status: %v", d.Status())
			}
			s.Want(t, "0#1")
			testkit.WantCommitted(t, group, topic, 0, 0)
		})
	}
}
