package ackpolicy_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// The middleware on subscribers that are not ours works on Watermill's own ack.

type foreignPubSub func(t *testing.T) (message.Publisher, message.Subscriber, string)

func foreignPubSubs() map[string]foreignPubSub {
	return map[string]foreignPubSub{
		"gochannel": func(t *testing.T) (message.Publisher, message.Subscriber, string) {
			pubSub := gochannel.NewGoChannel(gochannel.Config{}, newLog(t))
			return pubSub, pubSub, "topic"
		},
		"watermill-kafka": func(t *testing.T) (message.Publisher, message.Subscriber, string) {
			publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: shared.Addrs()}, newLog(t))
			check(t, err)
			t.Cleanup(func() { check(t, publisher.Close()) })
			subscriber, err := kafka.NewSubscriber(config(brokertest.Group(t)).Kafka, newLog(t))
			check(t, err)
			return publisher, subscriber, newTopic(t, 1)
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
) (*service, *foreignCall) {
	t.Helper()
	call := &foreignCall{returned: make(chan struct{}), reached: make(chan struct{})}
	first := make(chan struct{}, 1)
	first <- struct{}{}
	publisher, subscriber, topic := open(t)
	s := newService(t)
	s.router.AddMiddleware(func(h message.HandlerFunc) message.HandlerFunc {
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
	s.router.AddHandler("handler", topic, subscriber, "out", out, func(msg *message.Message) ([]*message.Message, error) {
		d, ok := ackpolicy.FromMessage(msg)
		if !ok {
			return nil, errors.New("a message without a Delivery")
		}
		s.journal.add(d)
		if msg != call.msg {
			d.Ack()
			return nil, nil
		}
		defer close(call.returned)
		call.delivery = d
		return h(d)
	})
	s.start(t)
	check(t, publisher.Publish(topic, message.NewMessage("id", []byte("payload"))))
	return s, call
}

// settled waits until the message is acked or nacked, and tells which.
func settled(t *testing.T, msg *message.Message) fate {
	t.Helper()
	var f fate
	eventually(t, "the ack or nack", func() bool {
		select {
		case <-msg.Acked():
			f = acked
		case <-msg.Nacked():
			f = nacked
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
			for _, verb := range verbs {
				if verb.name == v {
					verb.call(d)
				}
			}
			return end(d)
		}
	}
	ends := func(err error) func(*ackpolicy.Delivery) ([]*message.Message, error) {
		return func(*ackpolicy.Delivery) ([]*message.Message, error) { return nil, err }
	}
	produces := func(*ackpolicy.Delivery) ([]*message.Message, error) { return output(), nil }
	panics := func(v any) func(*ackpolicy.Delivery) ([]*message.Message, error) {
		return func(*ackpolicy.Delivery) ([]*message.Message, error) { panic(v) }
	}
	const waits = left // Manual waits for a verb: the test calls NackAfter
	for _, c := range []struct {
		name        string
		end         func(*ackpolicy.Delivery) ([]*message.Message, error)
		failPublish bool
		want        fates // of the message: a reject is an ack
	}{
		{"success", ends(nil), false, under(acked, acked, acked, waits)},
		{"error", ends(errBoom), false, under(acked, acked, nacked, waits)},
		{"panic", panics("boom"), false, under(acked, acked, nacked, waits)},
		{"publish failure", produces, true, under(nacked, nacked, nacked, waits)},
		{"ErrAck", ends(ackpolicy.ErrAck), false, always(acked)},
		{"ErrNack", ends(ackpolicy.ErrNack), false, always(nacked)},
		{"ErrReject", ends(ackpolicy.ErrReject), false, always(acked)},
		{"ErrNack panicked", panics(ackpolicy.ErrNack), false, always(nacked)},
		{"Ack called, then an error", settle("Ack", ends(errBoom)), false, always(acked)},
		{"Ack called, then a publish failure", settle("Ack", produces), true, always(acked)},
		{"Nack called, then success", settle("Nack", ends(nil)), false, always(nacked)},
		{"NackAfter called, then success", settle("NackAfter", ends(nil)), false, always(nacked)},
		{"Reject called, then an error", settle("Reject", ends(errBoom)), false, always(acked)},
	} {
		for name, open := range foreignPubSubs() {
			for _, policy := range policies {
				t.Run(c.name+"/"+name+"/"+policy.String(), func(t *testing.T) {
					t.Parallel()
					out := &failingPublisher{fail: c.failPublish}
					s, call := foreignService(t, open, out, policy.Middleware, c.end)
					await(t, "the handler's end", call.returned)
					want := c.want[policy]
					if want == waits {
						select {
						case <-call.reached:
							t.Error("the middleware did not wait for a settlement")
						default:
						}
						call.delivery.Nack()
						want = nacked
					}
					if got := settled(t, call.msg); got != want {
						t.Errorf("the message is %v, want %v", got, want)
					}
					s.stop()
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
			told := newLog(t)
			policy := ackpolicy.Middleware{Policy: ackpolicy.NackOnError, Logger: told}
			s, call := foreignService(t, open, &failingPublisher{}, policy.Middleware,
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
					if !d.Reject(errBoom) || !d.Reject(nil) || d.Ack() || d.Nack() || d.Status() != ackpolicy.Rejected {
						t.Errorf("the first settlement did not win: %v", d.Status())
					}
					return nil, nil
				})
			await(t, "the middleware's end", call.reached)
			s.stop()
			partition, offset := int32(0), int64(0)
			if name == "gochannel" {
				partition, offset = -1, -1
			}
			if d := call.delivery; d.Partition() != partition || d.Offset() != offset {
				t.Errorf("partition %d, offset %d", d.Partition(), d.Offset())
			}
			lines := with(told.at("error"), "Message rejected", "err="+errBoom.Error(), "topic=", "message_uuid=id")
			if position := with(lines, "kafka_partition=0", "kafka_partition_offset=0"); len(lines) != 1 || (len(position) == 1) != (partition == 0) {
				t.Errorf("the log has %v", told.at("error"))
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
			s, call := foreignService(t, open, &failingPublisher{}, ackpolicy.AckFirst.Middleware,
				func(d *ackpolicy.Delivery) ([]*message.Message, error) {
					if d.Status() != ackpolicy.Acked {
						t.Errorf("when the handler starts: %v", d.Status())
					}
					return nil, errBoom
				})
			await(t, "the middleware's end", call.reached)
			s.stop()
		})
	}
}

// A message that is never settled under Manual waits until its context ends, and holds up no stop.
func TestForeignManualEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for name, open := range foreignPubSubs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := &failingPublisher{}
			s, call := foreignService(t, open, out, ackpolicy.Manual.Middleware,
				func(*ackpolicy.Delivery) ([]*message.Message, error) { return output(), nil })
			await(t, "the handler's end", call.returned)
			s.stop()
			await(t, "the middleware's end", call.reached)
			if out.published > 0 {
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
			s, call := foreignService(t, open, &failingPublisher{}, confirmFirst,
				func(*ackpolicy.Delivery) ([]*message.Message, error) { return nil, nil })
			await(t, "the middleware's end", call.reached)
			if call.err == nil || !strings.Contains(call.err.Error(), "NewSubscriber") {
				t.Errorf("want an error that names the fix, got: %v", call.err)
			}
			if got := settled(t, call.msg); got != nacked {
				t.Errorf("the message is %v", got)
			}
			s.stop()
			s.journal.want(t)
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
