package ackpolicy_test

import (
	"context"
	"fmt"
	"net"
	"strings"
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

// limited lets a number of connections through; those after it are accepted and closed at once, as brokers do
// with what exceeds max.connections.per.ip.
type limited struct {
	brokertest.Network
	left atomic.Int32
	full net.Listener
}

func newLimited(t testing.TB, left int32) *limited {
	full, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for {
			c, err := full.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = full.Close()
		<-closed
	})
	l := &limited{full: full}
	l.left.Store(left)
	return l
}

func (l *limited) Dial(network, addr string) (net.Conn, error) {
	if l.left.Add(-1) < 0 {
		addr = l.full.Addr().String()
	}
	return l.Network.Dial(network, addr)
}

// A broker that accepts no more connections closes them at once, as it does where TLS or SASL are set wrong. The
// error names the limit, and once the settings have worked it blames nothing else.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	for _, left := range []int32{0, 1, 2} {
		t.Run(fmt.Sprint(left, " left"), func(t *testing.T) {
			t.Parallel()
			topic := newTopic(t, 1, numbered(1)...)
			cfg := config(brokertest.Group(t))
			cfg.Kafka.OverwriteSaramaConfig.Metadata.Retry.Max = 0
			cfg.Kafka.OverwriteSaramaConfig.Net.Proxy.Enable = true
			cfg.Kafka.OverwriteSaramaConfig.Net.Proxy.Dialer = newLimited(t, left)
			_, err := newSubscriber(t, cfg, newLog(t)).Subscribe(context.Background(), topic)
			if err == nil || !strings.Contains(err.Error(), "max.connections.per.ip") {
				t.Fatal("the limit is not named:", err)
			}
			if blamed := strings.Contains(err.Error(), "TLS"); blamed != (left == 0) {
				t.Error("TLS is blamed or not:", err)
			}
		})
	}
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
