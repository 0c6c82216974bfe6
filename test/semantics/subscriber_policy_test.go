package semantics_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// policyOf sets the Subscriber's policy.
func policyOf(p ackpolicy.Policy) testkit.Option {
	return func(c *ackpolicy.SubscriberConfig) { c.Policy = &p }
}

// outcome is how a handler without a middleware ends its first delivery, and what becomes of the record.
type outcome struct {
	name string
	end  func(d *ackpolicy.Delivery) error
	want testkit.Fates
}

func outcomes() []outcome {
	failed := testkit.Under(testkit.Acked, testkit.Rejected, testkit.Nacked, testkit.Left)
	returns := func(err error) func(*ackpolicy.Delivery) error { return func(*ackpolicy.Delivery) error { return err } }
	all := []outcome{
		{"succeeds", returns(nil), testkit.Under(testkit.Acked, testkit.Acked, testkit.Acked, testkit.Left)},
		{"fails", returns(testkit.ErrBoom), failed},
		{"panics", func(*ackpolicy.Delivery) error { panic(testkit.ErrBoom) }, failed},
		{"cannot be published", returns(nil), failed},
		{"returns a signal", returns(ackpolicy.ErrAck), failed}, // which only the middleware knows
	}
	for _, verb := range testkit.Verbs {
		all = append(all,
			outcome{verb.Name, func(d *ackpolicy.Delivery) error { verb.Call(d); return nil }, testkit.Always(verb.Asks)},
			outcome{verb.Name + ", fails", func(d *ackpolicy.Delivery) error { verb.Call(d); return testkit.ErrBoom }, testkit.Always(verb.Asks)})
	}
	return all
}

// refusing is a publisher that refuses one topic's messages of some names.
type refusing struct{ testkit.FailingPublisher }

func (p *refusing) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		if msg.UUID == "cannot be published" && msg.Metadata.Get("attempt") == "1" {
			return testkit.ErrBoom
		}
	}
	return p.FailingPublisher.Publish(topic, messages...)
}

// The table of policies, without a middleware.
func TestSubscriberPolicy(t *testing.T) {
	t.Parallel()
	for _, policy := range testkit.Policies {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			all := outcomes()
			topic := testkit.NewTopic(t, 1, testkit.Numbered(len(all))...)
			s := testkit.NewService(t)
			sub := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t), policyOf(policy), testkit.Ordering(ackpolicy.Unordered, len(all))), s.Log)
			s.Router.AddHandler("handler", topic, sub, "out", &refusing{}, func(msg *message.Message) ([]*message.Message, error) {
				d, _ := ackpolicy.FromMessage(msg)
				s.Add(d)
				out := message.NewMessage(all[d.Offset()].name, nil)
				out.Metadata.Set("attempt", fmt.Sprint(d.Attempt()))
				if d.Attempt() > 1 {
					d.Ack()
					return nil, nil
				}
				return message.Messages{out}, all[d.Offset()].end(d)
			})
			s.Start(t)
			s.Wait(t, len(all))
			s.Stop()
			for offset, o := range all {
				if got, want := s.Find(int64(offset), 1).Status(), o.want[policy].Status(); got != want {
					t.Errorf("%s: %v, want %v", o.name, got, want)
				}
			}
		})
	}
}

// In a Subscribe loop, the policy is what msg.Ack and msg.Nack mean. A verb that comes first takes precedence, and so
// does msg.Ack or msg.Nack over a later verb.
func TestSubscriberPolicyInALoop(t *testing.T) {
	t.Parallel()
	steps := []struct {
		name string
		do   func(msg *message.Message, d *ackpolicy.Delivery)
		want testkit.Fates
	}{
		{"Ack", func(msg *message.Message, _ *ackpolicy.Delivery) { msg.Ack() }, testkit.Under(testkit.Acked, testkit.Acked, testkit.Acked, testkit.Left)},
		{"Nack", func(msg *message.Message, _ *ackpolicy.Delivery) { msg.Nack() }, testkit.Under(testkit.Acked, testkit.Rejected, testkit.Nacked, testkit.Left)},
		{"a verb, then Nack", func(msg *message.Message, d *ackpolicy.Delivery) { d.Ack(); msg.Nack() }, testkit.Always(testkit.Acked)},
		{"a verb, then Ack", func(msg *message.Message, d *ackpolicy.Delivery) { d.Reject(nil); msg.Ack() }, testkit.Always(testkit.Rejected)},
		{"Nack, then a verb", func(msg *message.Message, d *ackpolicy.Delivery) { msg.Nack(); d.Ack() }, testkit.Under(testkit.Acked, testkit.Rejected, testkit.Nacked, testkit.Acked)},
		{"Ack, then a verb", func(msg *message.Message, d *ackpolicy.Delivery) { msg.Ack(); d.Reject(nil) }, testkit.Under(testkit.Acked, testkit.Acked, testkit.Acked, testkit.Rejected)},
	}
	for _, policy := range testkit.Policies {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			topic := testkit.NewTopic(t, 1, testkit.Numbered(len(steps))...)
			sub := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t), policyOf(policy)), testkit.NewLog(t))
			messages, err := sub.Subscribe(context.Background(), topic)
			testkit.Check(t, err)
			var j testkit.Journal
			for first := 0; first < len(steps); {
				msg := testkit.Await(t, "a message", messages)
				d, _ := ackpolicy.FromMessage(msg)
				j.Add(d)
				if d.Attempt() > 1 {
					d.Ack()
					msg.Ack()
					continue
				}
				first++
				steps[d.Offset()].do(msg, d)
				testkit.Await(t, "the end of a finished message's context", msg.Context().Done())
			}
			testkit.Check(t, sub.Close())
			for offset, step := range steps {
				if got, want := j.Find(int64(offset), 1).Status(), step.want[policy].Status(); got != want {
					t.Errorf("%s: %v, want %v", step.name, got, want)
				}
			}
		})
	}
}

// A middleware takes precedence over the subscriber, which takes precedence over the default.
func TestPrecedenceOfPolicies(t *testing.T) {
	t.Parallel()
	failed := testkit.Under(testkit.Acked, testkit.Rejected, testkit.Nacked, testkit.Left)
	for _, ofSubscriber := range testkit.Policies {
		t.Run(ofSubscriber.String(), func(t *testing.T) {
			t.Parallel()
			s := testkit.NewService(t)
			sub := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t), policyOf(ofSubscriber)), s.Log)
			journals, want := map[string]*testkit.Journal{}, map[string]testkit.Fate{}
			add := func(name string, fate testkit.Fate, mw ...message.HandlerMiddleware) {
				journals[name], want[name] = &testkit.Journal{}, fate
				h := s.Router.AddConsumerHandler(name, testkit.NewTopic(t, 1, testkit.Numbered(1)...), sub, journals[name].Recorded(
					func(_ *message.Message, d *ackpolicy.Delivery) error {
						if d.Attempt() > 1 {
							return nil
						}
						return testkit.ErrBoom
					}))
				h.AddMiddleware(mw...)
			}
			for _, policy := range testkit.Policies {
				add(policy.String(), failed[policy], policy.Middleware)
			}
			add("no middleware", failed[ofSubscriber])
			add("no policy", failed[ofSubscriber], ackpolicy.Middleware{}.Middleware)
			add("in Handlers", failed[ackpolicy.AckFirst], ackpolicy.Middleware{Handlers: map[string]ackpolicy.Policy{"in Handlers": ackpolicy.AckFirst}}.Middleware)
			add("not in Handlers", failed[ofSubscriber], ackpolicy.Middleware{Handlers: map[string]ackpolicy.Policy{"in Handlers": ackpolicy.AckFirst}}.Middleware)
			s.Start(t)
			for _, j := range journals {
				j.Wait(t, 1)
			}
			s.Stop()
			for name, j := range journals {
				if got := j.Find(0, 1).Status(); got != want[name].Status() {
					t.Errorf("%s: %v, want %v", name, got, want[name].Status())
				}
			}
			if lines := testkit.Containing(s.Log.At("error"), "has no effect"); len(lines) > 0 {
				t.Error(lines)
			}
		})
	}
}

// A Middleware without a policy adds its signals, and Classify, to the subscriber's.
func TestMiddlewareOnSubscriberPolicy(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t), policyOf(ackpolicy.NackOnError)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		switch {
		case d.Attempt() > 1:
			return nil
		case d.Offset() == 0:
			return ackpolicy.ErrReject
		case d.Offset() == 1:
			return errPermanent
		}
		return testkit.ErrBoom
	}, ackpolicy.Middleware{Classify: ackpolicy.NeverRetry(errPermanent)}.Middleware)
	s.Wait(t, 4)
	s.Stop()
	s.Want(t, "0#1", "1#1", "2#1", "2#2")
	if reported := append(testkit.Containing(s.Log.At("error"), "The middleware cannot"), testkit.Containing(s.Log.At("error"), "zero value")...); len(reported) > 0 {
		t.Errorf("nothing is wrong with it: %v", reported)
	}
}

// AckFirst acks while the handler runs, whether or not that ever looks at its Delivery.
func TestAckFirstOfSubscriber(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	release := make(chan struct{})
	var running atomic.Int32
	s := testkit.NewService(t)
	s.Router.AddConsumerHandler("handler", topic, testkit.NewSubscriber(t, testkit.Config(group, policyOf(ackpolicy.AckFirst), testkit.Ordering(ackpolicy.Unordered, 2)), s.Log),
		func(msg *message.Message) error {
			running.Add(1)
			defer running.Add(-1)
			return testkit.Until(msg.Context(), release)
		})
	s.Start(t)
	testkit.WaitCommitted(t, group, topic, 0, 2)
	if running.Load() != 2 {
		t.Errorf("%d handlers run", running.Load())
	}
	testkit.Produce(t, topic, 0, testkit.Numbered(1)...)
	close(release)
	testkit.WaitCommitted(t, group, topic, 0, 3)
}

// A middleware that the first messages do not reach is too late for AckFirst: the log says so.
func TestAckFirstOfSubscriberIsTold(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	throttle := func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			if err := brokertest.WaitCommitted(testkit.Shared.Addrs(), group, topic, 0, 1, testkit.Patience); err != nil {
				return nil, err
			}
			return h(msg)
		}
	}
	s := testkit.Consume(t, testkit.Config(group, policyOf(ackpolicy.AckFirst)), topic, testkit.Succeed, throttle, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 1)
	s.Stop()
	if lines := testkit.Containing(s.Log.At("error"), "Policy nack_on_error has no effect", "SubscriberConfig.Policy"); len(lines) != 1 {
		t.Errorf("want one line, got %v", s.Log.At("error"))
	}
}

// What RejectOnError rejects without a middleware has a letter, whose reason is that it was nacked.
func TestSubscriberPolicyRejects(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	s := testkit.Consume(t, testkit.Config(group, policyOf(ackpolicy.RejectOnError), testkit.DeadLetterTopic), topic,
		func(_ *message.Message, d *ackpolicy.Delivery) error {
			if d.Offset() == 0 {
				return testkit.ErrBoom
			}
			return nil
		})
	testkit.WaitCommitted(t, group, topic, 0, 2)
	s.Stop()
	s.Want(t, "0#1", "1#1")
	letter := testkit.Headers(testkit.Letters(t, topic+".dlq", 0, 1)[0])
	if reason := letter[ackpolicy.HeaderReason]; !strings.HasPrefix(reason, "nacked: ") || letter[ackpolicy.HeaderOffset] != "0" {
		t.Errorf("letter: %v", letter)
	}
}

// A policy gives up nothing that failed for another reason than its handler: a handler that we stopped, a middleware
// that refuses to run it.
func TestSubscriberPolicyLeaves(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mw      []message.HandlerMiddleware
		noGroup bool
	}{
		"stopped by us":            {},
		"an invalid middleware":    {mw: []message.HandlerMiddleware{ackpolicy.Middleware{Policy: 99}.Middleware}},
		"ConfirmFirst cannot work": {mw: []message.HandlerMiddleware{testkit.ConfirmFirst}, noGroup: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			settled := make(chan ackpolicy.SettledEvent, 100)
			cfg := testkit.Config(brokertest.Group(t), policyOf(ackpolicy.RejectOnError), testkit.DrainTimeout(100*time.Millisecond))
			cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) { settled <- e }
			if c.noGroup {
				cfg.Kafka.ConsumerGroup = ""
			}
			came := make(chan struct{}, 100)
			saw := func(h message.HandlerFunc) message.HandlerFunc {
				return func(msg *message.Message) ([]*message.Message, error) {
					came <- struct{}{}
					return h(msg)
				}
			}
			s := testkit.Consume(t, cfg, topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
				<-msg.Context().Done()
				return msg.Context().Err()
			}, append([]message.HandlerMiddleware{saw}, c.mw...)...)
			testkit.Await(t, "the message", came)
			if c.mw != nil {
				testkit.Await(t, "its second delivery", came)
			}
			s.Stop()
			close(settled)
			for e := range settled {
				if e.Status != ackpolicy.Nacked {
					t.Errorf("settled as %v: %v", e.Status, e.Reason)
				}
			}
		})
	}
}
