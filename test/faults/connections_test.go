package faults_test

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
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// While the broker is away, a subscription tries to reconnect with growing pauses, and then continues where it was.
func TestReconnect(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"group", "no group"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const down = 3 * time.Second
			network := &brokertest.Network{}
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
			if kind == "no group" {
				group = ""
			}
			cfg := testkit.Config(group)
			cfg.Kafka.OverwriteSaramaConfig.Metadata.Retry.Max = 0 // the pauses are to be our own
			network.Use(cfg.Kafka.OverwriteSaramaConfig)
			s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			s.Wait(t, 3)
			if group != "" {
				testkit.WaitCommitted(t, group, topic, 0, 3)
			}
			network.Cut()
			before := network.Dials()
			<-time.After(down)
			if n := network.Dials() - before; n < 1 || n > 30 {
				t.Errorf("%d attempts to connect in %v", n, down)
			}
			network.Heal()
			testkit.Produce(t, topic, 0, testkit.Numbered(2)...)
			s.Wait(t, 5)
			if group != "" {
				testkit.WaitCommitted(t, group, topic, 0, 5)
			}
			s.Stop()
			s.Want(t, "0#1", "1#1", "2#1", "3#1", "4#1")
		})
	}
}

// A coordinator that nobody knows for a second or two, as when its broker is restarted, does not end the membership.
func TestCoordinatorAwayForAMoment(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(3)...)
	cfg := testkit.Config(brokertest.Group(t), at)
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Session.Timeout = time.Minute // for which the moment, of about ten seconds, is short
	var revoked atomic.Bool
	cfg.Hooks.Revoked = func(ackpolicy.RevokedEvent) { revoked.Store(true) }
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 3)
	refused := broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Err: kerr.NotCoordinator, Count: -1})
	unknown := broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.FindCoordinator}, Err: kerr.CoordinatorNotAvailable, Count: -1})
	testkit.Eventually(t, "some heartbeats", func() bool { return unknown.Hits() > 5 || revoked.Load() })
	refused.Remove()
	unknown.Remove()
	_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(2)...)
	testkit.Check(t, err)
	s.Wait(t, 5)
	if revoked.Load() {
		t.Error("the membership ended")
	}
	s.Stop()
	s.Want(t, "0#1", "1#1", "2#1", "3#1", "4#1")
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
	testkit.Check(t, err)
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
	for _, left := range []int32{0, 1} { // Subscribe needs two: for the metadata, and to find the coordinator
		t.Run(fmt.Sprint(left, " left"), func(t *testing.T) {
			t.Parallel()
			topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			cfg := testkit.Config(brokertest.Group(t))
			cfg.Kafka.OverwriteSaramaConfig.Metadata.Retry.Max = 0
			cfg.Kafka.OverwriteSaramaConfig.Net.Proxy.Enable = true
			cfg.Kafka.OverwriteSaramaConfig.Net.Proxy.Dialer = newLimited(t, left)
			_, err := testkit.NewSubscriber(t, cfg, testkit.NewLog(t)).Subscribe(context.Background(), topic)
			if err == nil || !strings.Contains(err.Error(), "max.connections.per.ip") {
				t.Fatal("the limit is not named:", err)
			}
			if blamed := strings.Contains(err.Error(), "TLS"); blamed != (left == 0) {
				t.Error("TLS is blamed or not:", err)
			}
		})
	}
}

// A connection that breaks while Subscribe opens it is opened again.
func TestSubscribeBearsABrokenConnection(t *testing.T) {
	t.Parallel()
	for broken := range int32(4) { // a subscription has three clients
		broker := brokertest.NewFake(t)
		topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(1)...)
		var asked atomic.Int32
		broker.Kfake().ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
			broker.Kfake().KeepControl()
			return nil, context.Canceled, asked.Add(1) == broken+1 // closes the connection
		})
		s := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t), at), testkit.NewLog(t))
		if _, err := s.Subscribe(context.Background(), topic); err != nil {
			t.Errorf("connection %d broke: %v", broken, err)
		}
		testkit.Check(t, s.Close())
	}
}

// Both the connection that commits and the one that fetches find a partition's next leader.
func TestLeaderMoves(t *testing.T) {
	t.Parallel()
	const records, brokers = 400, 3
	broker := brokertest.NewFake(t, kfake.NumBrokers(brokers))
	topic, at := testkit.FakeTopic(t, broker, testkit.Sized(records, 10_000)...)
	cfg := testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.OrderByKey, 16), at)
	cfg.Kafka.Brokers = cfg.Kafka.Brokers[:1]
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Retry.Backoff = 100 * time.Millisecond
	cfg.MaxBufferedBytes = testkit.MiB // a quarter of the records
	s := testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() > 1 || d.Offset() >= records {
			return ackpolicy.ErrAck
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	s.Wait(t, records)
	pending := s.All()
	for i, d := range pending {
		if i%(records/10) == 0 {
			testkit.Check(t, broker.Kfake().MoveTopicPartition(topic, 0, int32(i/(records/10)%brokers)))
		}
		if !d.Nack() {
			t.Fatalf("%s is %v", testkit.Name(d), d.Status())
		}
	}
	s.Wait(t, 2*records)
	testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), cfg.Kafka.ConsumerGroup, topic, 0, records, testkit.Patience))
	_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(1)...)
	testkit.Check(t, err)
	s.Wait(t, 2*records+1)
}
