package middlewares_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// The middleware on subscribers that are not ours works on Watermill's own ack.

type foreignPubSub func(t *testing.T) (message.Publisher, message.Subscriber, string)

func foreignPubSubs() map[string]foreignPubSub {
	return map[string]foreignPubSub{
		"gochannel": func(t *testing.T) (message.Publisher, message.Subscriber, string) {
			pubSub := gochannel.NewGoChannel(gochannel.Config{}, testkit.NewLog(t))
			return pubSub, pubSub, "topic"
		},
		"watermill-kafka": func(t *testing.T) (message.Publisher, message.Subscriber, string) {
			publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: testkit.Shared.Addrs()}, testkit.NewLog(t))
			testkit.Check(t, err)
			t.Cleanup(func() { testkit.Check(t, publisher.Close()) })
			subscriber, err := kafka.NewSubscriber(testkit.Config(brokertest.Group(t)).Kafka, testkit.NewLog(t))
			testkit.Check(t, err)
			return publisher, subscriber, testkit.NewTopic(t, 1)
		},
	}
}

// foreignCall is the first delivery of the message of a foreign test.
type foreignCall struct {
	msg      *message.Message
	delivery *ackpolicy.Delivery
	returned chan struct{} // closed when what is inside of the middleware has returned
	reached  chan struct{} // closed when the middleware has
	err      error         // what it returned
}

// foreignService handles one message with h, and every further delivery of it with an ack.
func foreignService(t *testing.T, open foreignPubSub, out message.Publisher, mw message.HandlerMiddleware,
	h func(*ackpolicy.Delivery) ([]*message.Message, error),
) (*testkit.Service, *foreignCall) {
	t.Helper()
	call := &foreignCall{returned: make(chan struct{}), reached: make(chan struct{})}
	first := make(chan struct{}, 1)
	first <- struct{}{}
	publisher, subscriber, topic := open(t)
	s := testkit.NewService(t)
	s.Router.AddMiddleware(func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) (produced []*message.Message, err error) {
			select {
			case <-first:
				call.msg = msg
				defer func() { call.err = err; close(call.reached) }()
			default:
			}
			return h(msg)
		}
	}, mw)
	s.Router.AddHandler("handler", topic, subscriber, "out", out, func(msg *message.Message) ([]*message.Message, error) {
		d, ok := ackpolicy.FromMessage(msg)
		if !ok {
			return nil, errors.New("a message without a Delivery")
		}
		s.Add(d)
		if msg != call.msg {
			d.Ack()
			return nil, nil
		}
		defer close(call.returned)
		call.delivery = d
		return h(d)
	})
	s.Start(t)
	testkit.Check(t, publisher.Publish(topic, message.NewMessage("id", []byte("payload"))))
	return s, call
}

// settled waits until the message is acked or nacked, and returns which.
func settled(t *testing.T, msg *message.Message) testkit.Fate {
	t.Helper()
	var f testkit.Fate
	testkit.Eventually(t, "the ack or nack", func() bool {
		select {
		case <-msg.Acked():
			f = testkit.Acked
		case <-msg.Nacked():
			f = testkit.Nacked
		default:
		}
		return f != ""
	})
	return f
}

func TestForeignSubscribers(t *testing.T) {
	t.Parallel()
	settle := func(v string, end func(*ackpolicy.Delivery) ([]*message.Message, error)) func(*ackpolicy.Delivery) ([]*message.Message, error) {
		return func(d *ackpolicy.Delivery) ([]*message.Message, error) {
			for _, verb := range testkit.Verbs {
				if verb.Name == v {
					verb.Call(d)
				}
			}
			return end(d)
		}
	}
	ends := func(err error) func(*ackpolicy.Delivery) ([]*message.Message, error) {
		return func(*ackpolicy.Delivery) ([]*message.Message, error) { return nil, err }
	}
	produces := func(*ackpolicy.Delivery) ([]*message.Message, error) { return testkit.Output(), nil }
	panics := func(v any) func(*ackpolicy.Delivery) ([]*message.Message, error) {
		return func(*ackpolicy.Delivery) ([]*message.Message, error) { panic(v) }
	}
	const waits = testkit.Left // Manual waits for a verb: the test calls NackAfter
	for _, c := range []struct {
		name        string
		end         func(*ackpolicy.Delivery) ([]*message.Message, error)
		failPublish bool
		want        testkit.Fates // of the message: a reject is an ack
	}{
		{"success", ends(nil), false, testkit.Under(testkit.Acked, testkit.Acked, testkit.Acked, waits)},
		{"error", ends(testkit.ErrBoom), false, testkit.Under(testkit.Acked, testkit.Acked, testkit.Nacked, waits)},
		{"panic", panics("boom"), false, testkit.Under(testkit.Acked, testkit.Acked, testkit.Nacked, waits)},
		{"publish failure", produces, true, testkit.Under(testkit.Nacked, testkit.Nacked, testkit.Nacked, waits)},
		{"ErrAck", ends(ackpolicy.ErrAck), false, testkit.Always(testkit.Acked)},
		{"ErrNack", ends(ackpolicy.ErrNack), false, testkit.Always(testkit.Nacked)},
		{"ErrReject", ends(ackpolicy.ErrReject), false, testkit.Always(testkit.Acked)},
		{"ErrNack panicked", panics(ackpolicy.ErrNack), false, testkit.Always(testkit.Nacked)},
		{"Ack called, then an error", settle("Ack", ends(testkit.ErrBoom)), false, testkit.Always(testkit.Acked)},
		{"Ack called, then a publish failure", settle("Ack", produces), true, testkit.Always(testkit.Acked)},
		{"Nack called, then success", settle("Nack", ends(nil)), false, testkit.Always(testkit.Nacked)},
		{"NackAfter called, then success", settle("NackAfter", ends(nil)), false, testkit.Always(testkit.Nacked)},
		{"Reject called, then an error", settle("Reject", ends(testkit.ErrBoom)), false, testkit.Always(testkit.Acked)},
	} {
		for name, open := range foreignPubSubs() {
			for _, policy := range testkit.Policies {
				t.Run(c.name+"/"+name+"/"+policy.String(), func(t *testing.T) {
					t.Parallel()
					out := &testkit.FailingPublisher{Fail: c.failPublish}
					s, call := foreignService(t, open, out, policy.Middleware, c.end)
					testkit.Await(t, "the handler's end", call.returned)
					want := c.want[policy]
					if want == waits {
						select {
						case <-call.reached:
							t.Error("the middleware did not wait for a settlement")
						default:
						}
						call.delivery.Nack()
						want = testkit.Nacked
					}
					if got := settled(t, call.msg); got != want {
						t.Errorf("the message is %v, want %v", got, want)
					}
					s.Stop()
				})
			}
		}
	}
}

// What only Kafka can do says so, and settles nothing.
func TestForeignDelivery(t *testing.T) {
	t.Parallel()
	for name, open := range foreignPubSubs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reported := testkit.NewLog(t)
			policy := ackpolicy.Middleware{Policy: ackpolicy.NackOnError, Logger: reported}
			s, call := foreignService(t, open, &testkit.FailingPublisher{}, policy.Middleware,
				func(d *ackpolicy.Delivery) ([]*message.Message, error) {
					if err := d.AckSync(context.Background()); !errors.Is(err, ackpolicy.ErrNotKafka) {
						t.Errorf("AckSync: %v", err)
					}
					if d.AckCumulative() {
						t.Error("AckCumulative: true")
					}
					if d.Status() != ackpolicy.Pending || d.Attempt() != 1 {
						t.Errorf("status %v, attempt %d", d.Status(), d.Attempt())
					}
					if !d.Reject(testkit.ErrBoom) || !d.Reject(nil) || d.Ack() || d.Nack() || d.Status() != ackpolicy.Rejected {
						t.Errorf("the first settlement did not win: %v", d.Status())
					}
					return nil, nil
				})
			testkit.Await(t, "the middleware's end", call.reached)
			s.Stop()
			partition, offset := int32(0), int64(0)
			if name == "gochannel" {
				partition, offset = -1, -1
			}
			if d := call.delivery; d.Partition() != partition || d.Offset() != offset {
				t.Errorf("partition %d, offset %d", d.Partition(), d.Offset())
			}
			lines := testkit.Containing(reported.At("error"), "Message rejected", "err="+testkit.ErrBoom.Error(), "topic=", "message_uuid=id")
			if position := testkit.Containing(lines, "kafka_partition=0", "kafka_partition_offset=0"); len(lines) != 1 || (len(position) == 1) != (partition == 0) {
				t.Errorf("the log has %v", reported.At("error"))
			}
		})
	}
}

// AckFirst acks before the handler.
func TestForeignAckFirst(t *testing.T) {
	t.Parallel()
	for name, open := range foreignPubSubs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, call := foreignService(t, open, &testkit.FailingPublisher{}, ackpolicy.AckFirst.Middleware,
				func(d *ackpolicy.Delivery) ([]*message.Message, error) {
					if d.Status() != ackpolicy.Acked {
						t.Errorf("when the handler starts: %v", d.Status())
					}
					return nil, testkit.ErrBoom
				})
			testkit.Await(t, "the middleware's end", call.reached)
			s.Stop()
		})
	}
}

// A message that is never settled under Manual waits until its context ends, and delays no stop.
func TestForeignManualEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for name, open := range foreignPubSubs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := &testkit.FailingPublisher{}
			s, call := foreignService(t, open, out, ackpolicy.Manual.Middleware,
				func(*ackpolicy.Delivery) ([]*message.Message, error) { return testkit.Output(), nil })
			testkit.Await(t, "the handler's end", call.returned)
			s.Stop()
			testkit.Await(t, "the middleware's end", call.reached)
			if out.Count() > 0 {
				t.Error("published what an unsettled message produced")
			}
		})
	}
}

func TestForeignConfirmFirst(t *testing.T) {
	t.Parallel()
	for name, open := range foreignPubSubs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, call := foreignService(t, open, &testkit.FailingPublisher{}, testkit.ConfirmFirst,
				func(*ackpolicy.Delivery) ([]*message.Message, error) { return nil, nil })
			testkit.Await(t, "the middleware's end", call.reached)
			if call.err == nil || !strings.Contains(call.err.Error(), "NewSubscriber") {
				t.Errorf("want an error that names the fix, got: %v", call.err)
			}
			if got := settled(t, call.msg); got != testkit.Nacked {
				t.Errorf("the message is %v", got)
			}
			s.Stop()
			s.Want(t)
		})
	}
}

// Without the middleware there is no Delivery over a message that is not ours.
func TestForeignWithoutMiddleware(t *testing.T) {
	msg := message.NewMessage("id", nil)
	if _, ok := ackpolicy.FromMessage(msg); ok {
		t.Error("a Delivery over a message of nobody's")
	}
}

// On other subscribers Manual waits for the message to be settled, as long as the message lives: not only as long as the
// context that a Timeout inside of it has given the handler.
func TestForeignManualOutlivesTimeout(t *testing.T) {
	t.Parallel()
	for name, open := range foreignPubSubs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := &testkit.FailingPublisher{}
			mw := func(h message.HandlerFunc) message.HandlerFunc {
				return ackpolicy.Manual.Middleware(middleware.Timeout(time.Minute)(h))
			}
			s, call := foreignService(t, open, out, mw,
				func(*ackpolicy.Delivery) ([]*message.Message, error) { return testkit.Output(), nil })
			testkit.Await(t, "the handler's end", call.returned)
			if !call.delivery.Ack() {
				t.Errorf("not acked: %v", call.delivery.Status())
			}
			testkit.Await(t, "the middleware's end", call.reached)
			if got := settled(t, call.msg); got != testkit.Acked || call.err != nil {
				t.Errorf("%v, %v", got, call.err)
			}
			s.Stop()
			if out.Count() != 1 {
				t.Errorf("published %d messages", out.Count())
			}
		})
	}
}

// A Retry outside comes too late there: the first failure settles.
func TestForeignRetryOutside(t *testing.T) {
	t.Parallel()
	retry := middleware.Retry{MaxRetries: 1, InitialInterval: time.Millisecond}.Middleware
	for _, c := range []struct {
		name     string
		mw       message.HandlerMiddleware
		rejected bool
	}{
		{"inside", func(h message.HandlerFunc) message.HandlerFunc { return ackpolicy.RejectOnError.Middleware(retry(h)) }, false},
		{"outside", func(h message.HandlerFunc) message.HandlerFunc { return retry(ackpolicy.RejectOnError.Middleware(h)) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			calls := 0
			msg := message.NewMessage("id", nil)
			_, err := c.mw(func(msg *message.Message) ([]*message.Message, error) {
				if calls++; calls == 1 {
					return nil, testkit.ErrBoom
				}
				d, _ := ackpolicy.FromMessage(msg)
				if got := d.Status() == ackpolicy.Rejected; got != c.rejected {
					t.Errorf("the second try finds it %v", d.Status())
				}
				return nil, nil
			})(msg)
			if err != nil || calls != 2 {
				t.Errorf("%d calls, %v", calls, err)
			}
		})
	}
}
