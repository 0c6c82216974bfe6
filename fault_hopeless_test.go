package ackpolicy_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// A commit that Kafka refuses, and would again, holds up neither a drain nor the handlers that wait for it
// meanwhile. It is told.
func TestHopelessCommitsEndTheDrain(t *testing.T) {
	t.Parallel()
	const bound = 6 * time.Second // the drain alone may take 10, and the last commit 3 more
	for _, refusal := range []*kerr.Error{kerr.UnknownTopicOrPartition, kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed} {
		for _, waits := range []bool{false, true} {
			name := refusal.Message
			if waits {
				name += ", AckSync"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				broker := brokertest.NewFake(t)
				topic, at := fakeTopic(t, broker, numbered(1)...)
				group := brokertest.Group(t)
				cfg := config(group, at)
				cfg.CommitInterval = time.Hour
				revoked := make(chan ackpolicy.RevokedEvent, 1)
				cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { revoked <- e }
				handled := make(chan struct{}, 1)
				var fault *kfake.FaultHandle
				s := consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
					fault = broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: refusal, Count: -1})
					handled <- struct{}{}
					if !waits {
						return ackpolicy.ErrAck
					}
					if err := d.AckSync(msg.Context()); err == nil {
						t.Error("AckSync succeeded")
					}
					return nil
				}, ackpolicy.Manual.Middleware)
				await(t, "the handler", handled)
				began := time.Now()
				s.stop()
				if took := time.Since(began); took > bound {
					t.Errorf("Close took %v", took)
				}
				if e := await(t, "the hook", revoked); e.Err == nil {
					t.Errorf("the hook was told %+v", e)
				}
				if n := fault.Hits(); !waits && n > 2 {
					t.Errorf("%d commits", n)
				}
				if n := len(with(s.log.at("error"), "its last commit is not confirmed", "is refused, and would be again")); n != 1 {
					t.Errorf("%d lines of it", n)
				}
			})
		}
	}
}

// A hook of commits that blocks holds up no AckSync of whatever partition, and it may close the subscriber.
func TestSlowCommitHook(t *testing.T) {
	t.Parallel()
	const records = 5
	topic := filledTopic(t, 2, records)
	release := make(chan struct{})
	cfg := config(brokertest.Group(t))
	cfg.Hooks.Committed = func(ackpolicy.CommittedEvent) { <-release }
	s := consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		return d.AckSync(msg.Context())
	}, ackpolicy.Manual.Middleware)
	s.journal.wait(t, 2*records)
	close(release)
	s.stop()
}

func TestCloseFromCommitHook(t *testing.T) {
	t.Parallel()
	topic := filledTopic(t, 1, 1)
	closed := make(chan error, 1)
	subscriber := make(chan *ackpolicy.Subscriber, 1)
	cfg := config(brokertest.Group(t))
	cfg.Hooks.Committed = func(ackpolicy.CommittedEvent) {
		select {
		case sub := <-subscriber:
			closed <- sub.Close()
		default:
		}
	}
	s := newService(t)
	s.router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	sub := newSubscriber(t, cfg, s.log)
	subscriber <- sub
	s.router.AddConsumerHandler("handler", topic, sub, s.recorded(ack))
	s.start(t)
	if err := await(t, "Close, called by the hook", closed); err != nil {
		t.Error(err)
	}
	s.stop()
}
