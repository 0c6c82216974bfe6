package ackpolicy_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// While the broker is away a subscription tries to come back with growing pauses, not in a loop, and goes on where it was.
func TestReconnect(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"group", "no group"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const down = 3 * time.Second
			network := &brokertest.Network{}
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(3)...)
			if kind == "no group" {
				group = ""
			}
			cfg := config(group)
			cfg.Kafka.OverwriteSaramaConfig.Metadata.Retry.Max = 0 // the pauses are to be our own
			network.Use(cfg.Kafka.OverwriteSaramaConfig)
			s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, 3)
			if group != "" {
				waitCommitted(t, group, topic, 0, 3)
			}
			network.Cut()
			before := network.Dials()
			<-time.After(down)
			if n := network.Dials() - before; n < 1 || n > 30 {
				t.Errorf("%d attempts to connect in %v", n, down)
			}
			network.Heal()
			produce(t, topic, 0, numbered(2)...)
			s.journal.wait(t, 5)
			if group != "" {
				waitCommitted(t, group, topic, 0, 5)
			}
			s.stop()
			s.journal.want(t, "0#1", "1#1", "2#1", "3#1", "4#1")
		})
	}
}

// A coordinator that nobody knows for a second or two, as when its broker is restarted, does not end the membership.
func TestCoordinatorAwayForAMoment(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := fakeTopic(t, broker, numbered(3)...)
	cfg := config(brokertest.Group(t), at)
	var revoked atomic.Bool
	cfg.Hooks.Revoked = func(ackpolicy.RevokedEvent) { revoked.Store(true) }
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, 3)
	refused := broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.NotCoordinator, Count: -1})
	unknown := broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.FindCoordinator}, Err: kerr.CoordinatorNotAvailable, Count: -1})
	eventually(t, "some heartbeats", func() bool { return unknown.Hits() > 5 || revoked.Load() })
	refused.Remove()
	unknown.Remove()
	_, err := brokertest.Produce(broker.Addrs(), topic, 0, numbered(2)...)
	check(t, err)
	s.journal.wait(t, 5)
	if revoked.Load() {
		t.Error("the membership ended")
	}
	s.stop()
	s.journal.want(t, "0#1", "1#1", "2#1", "3#1", "4#1")
}

// A connection that breaks as a subscription opens is made again.
func TestSubscribeBearsABrokenConnection(t *testing.T) {
	t.Parallel()
	for broken := range int32(4) { // a subscription has three clients
		broker := brokertest.NewFake(t)
		topic, at := fakeTopic(t, broker, numbered(1)...)
		var asked atomic.Int32
		broker.Kfake().ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
			broker.Kfake().KeepControl()
			return nil, context.Canceled, asked.Add(1) == broken+1 // closes the connection
		})
		s := newSubscriber(t, config(brokertest.Group(t), at), newLog(t))
		if _, err := s.Subscribe(context.Background(), topic); err != nil {
			t.Errorf("connection %d broke: %v", broken, err)
		}
		check(t, s.Close())
	}
}
