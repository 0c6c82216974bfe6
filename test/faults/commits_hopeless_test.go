package faults_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A commit that Kafka refuses, and would refuse again, delays neither a drain nor the handlers that wait for it. The log
// says so.
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
				topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(1)...)
				group := brokertest.Group(t)
				cfg := testkit.Config(group, at)
				cfg.CommitInterval = time.Hour
				revoked := make(chan ackpolicy.RevokedEvent, 1)
				cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { revoked <- e }
				handled := make(chan struct{}, 1)
				var fault *kfake.FaultHandle
				s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
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
				testkit.Await(t, "the handler", handled)
				began := time.Now()
				s.Stop()
				if took := time.Since(began); took > bound {
					t.Errorf("Close took %v", took)
				}
				if e := testkit.Await(t, "the hook", revoked); e.Err == nil {
					t.Errorf("the hook got %+v", e)
				}
				// Two say that it is hopeless. On a busy machine the next ones, each after twice the pause, may come before the
				// drain continues. A drain that lasts to its end has ten.
				if n := fault.Hits(); !waits && n > 6 {
					t.Errorf("%d commits", n)
				}
				if n := len(testkit.Containing(s.Log.At("error"), "its last commit is not confirmed", "is refused, and would be refused again")); n != 1 {
					t.Errorf("%d lines of it", n)
				}
			})
		}
	}
}
