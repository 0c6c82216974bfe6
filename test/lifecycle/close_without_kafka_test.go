package lifecycle_test

import (
	"net"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// With the broker gone, or silent, Close still ends within DrainTimeout + 5 s, and
// the log says what it could not commit.
func TestCloseWithoutABroker(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*brokertest.Network){
		"refused": func(n *brokertest.Network) { n.Cut() },
		"silent":  func(n *brokertest.Network) { n.Delay(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 2, testkit.Numbered(5)...)
			network := &brokertest.Network{}
			cfg := testkit.Config(group, testkit.DrainTimeout(300*time.Millisecond))
			cfg.CommitInterval = time.Hour // the last commit is all there is
			network.Use(cfg.Kafka.OverwriteSaramaConfig)
			released := make(chan ackpolicy.RevokedEvent, 2)
			cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released <- e }
			assigned := make(chan ackpolicy.AssignedEvent, 2)
			cfg.Hooks.Assigned = func(e ackpolicy.AssignedEvent) { assigned <- e }
			s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			s.Wait(t, 5)
			for range 2 {
				testkit.Await(t, "a partition", assigned)
			}
			fail(network)
			wantClosed(t, s.Stop, 300*time.Millisecond)
			events := map[int32]ackpolicy.RevokedEvent{}
			for range 2 {
				e := testkit.Await(t, "the end of a partition", released)
				events[e.Partition] = e
			}
			if e := events[0]; e.Err == nil || e.Offset != 5 {
				t.Errorf("partition 0 was released as %+v, want offset 5 and the commit's error", e)
			}
			if len(s.Log.At("error")) == 0 {
				t.Error("nothing was logged at error level")
			}
			network.Heal()
			if n := network.OpenConns(); n != 0 {
				t.Errorf("%d connections left", n)
			}
		})
	}
}

// Handlers that end at once leave their time to the last commit: a coordinator that takes none for a while, since the
// group waits for a member that is gone, does not make the next owner deliver again.
func TestCloseCommitsForAsLongAsItMay(t *testing.T) {
	t.Parallel()
	const refused = 9 // some 4 s
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(5)...)
	group := brokertest.Group(t)
	cfg := testkit.Config(group, at, testkit.DrainTimeout(5*time.Second))
	cfg.CommitInterval = time.Hour // the last commit is all there is
	var released ackpolicy.RevokedEvent
	cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released = e }
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 5)
	fault := testkit.RefuseCommits(broker, refused)
	s.Stop()
	stored, err := brokertest.Committed(broker.Addrs(), group, topic, 0)
	if err != nil || stored != 5 || released.Err != nil || fault.Hits() != refused {
		t.Errorf("stored: %d, %v; released as %+v after %d refusals", stored, err, released, fault.Hits())
	}
}

// Close ends in time though the position that the group starts from was never stored.
func TestCloseBeforeTheStartIsStored(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(1)...)
	refused := broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.GroupAuthorizationFailed, Count: -1})
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t), at, testkit.DrainTimeout(200*time.Millisecond)), topic,
		testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "a refused commit", func() bool { return refused.Hits() > 0 })
	wantClosed(t, s.Stop, 200*time.Millisecond)
	s.Want(t) // nothing was handed out: the next owner might start behind it
}

// wantClosed asserts that a Close ends within its bound. One that does not end at all fails the test, too.
func wantClosed(t *testing.T, closes func(), drain time.Duration) {
	t.Helper()
	began, closed := time.Now(), make(chan struct{})
	go func() {
		defer close(closed)
		closes()
	}()
	testkit.Await(t, "the end of Close", closed)
	const busy = 2 * time.Second // what a machine with better things to do may add
	if took, promised := time.Since(began), drain+5*time.Second; took > promised+busy {
		t.Errorf("Close took %v, at most %v is promised", took, promised)
	}
}

// networks are those between a client and its brokers, by address.
type networks map[string]*brokertest.Network

func (n networks) Dial(network, addr string) (net.Conn, error) { return n[addr].Dial(network, addr) }

// silentLeader is a partition whose leader a test can silence, while the group's coordinator continues.
type silentLeader struct {
	broker       *brokertest.Broker
	topic, group string
	leader       *brokertest.Network
	reached      testkit.Option // through those networks
	direct       testkit.Option
}

func newSilentLeader(t *testing.T, records ...brokertest.Record) *silentLeader {
	t.Helper()
	l := &silentLeader{broker: brokertest.NewFake(t, kfake.NumBrokers(2))}
	l.topic, l.direct = testkit.FakeTopic(t, l.broker, records...)
	client, err := sarama.NewClient(l.broker.Addrs(), nil)
	testkit.Check(t, err)
	defer client.Close()
	leader, err := client.Leader(l.topic, 0)
	testkit.Check(t, err)
	for coordinator := leader; coordinator.ID() == leader.ID(); {
		l.group = brokertest.Group(t)
		coordinator, err = client.Coordinator(l.group)
		testkit.Check(t, err)
	}
	all := networks{}
	for _, addr := range l.broker.Addrs() {
		all[addr] = &brokertest.Network{}
	}
	l.leader = all[leader.Addr()]
	l.reached = func(c *ackpolicy.SubscriberConfig) {
		l.direct(c)
		c.Kafka.OverwriteSaramaConfig.Net.Proxy.Enable = true
		c.Kafka.OverwriteSaramaConfig.Net.Proxy.Dialer = all
	}
	return l
}

// silence silences the leader, and waits until it has been asked once more.
func (l *silentLeader) silence(t *testing.T) {
	t.Helper()
	before := l.leader.Dials()
	l.leader.Delay(time.Hour)
	testkit.Eventually(t, "another question", func() bool { return l.leader.Dials() > before })
}

// What a silent leader is being asked, in a fetch, by the watchdog, or for a record that was pushed out of memory, holds
// neither Close nor the leave; nor, on a revocation, the next owner.
func TestCloseWithASilentLeader(t *testing.T) {
	t.Parallel()
	const drain = 300 * time.Millisecond
	for how, end := range map[string]func(t *testing.T, l *silentLeader, s *testkit.Service){
		"closing": func(t *testing.T, l *silentLeader, s *testkit.Service) {
			wantClosed(t, s.Stop, drain)
			n, state, err := brokertest.Members(l.broker.Addrs(), l.group)
			testkit.Check(t, err)
			if n != 0 {
				t.Errorf("%d members are left in the group: %s", n, state)
			}
			if lines := testkit.Containing(s.Log.At("error"), "connections cut"); len(lines) > 0 {
				t.Errorf("it took to the very end: %v", lines)
			}
		},
		"revoked": func(t *testing.T, l *silentLeader, s *testkit.Service) {
			other := testkit.Consume(t, testkit.Config(l.group, l.direct), l.topic, testkit.Succeed, ackpolicy.Manual.Middleware)
			testkit.Eventually(t, "the drain", func() bool { return len(testkit.Containing(s.Log.At("debug"), "Partition released")) > 0 })
			began := time.Now()
			// What it asks then, the silent leader perhaps, is another matter: to join again takes metadata.
			testkit.Eventually(t, "the end of the session", func() bool {
				return len(testkit.Containing(s.Log.At("info"), "Waiting for the consumer group")) > 0 || len(testkit.Containing(s.Log.At("info"), "Joined the consumer group")) > 1
			})
			if took := time.Since(began); took > 8*time.Second { // the line comes after 3 s
				t.Errorf("the session took %v to end", took)
			}
			other.Stop()
			wantClosed(t, s.Stop, drain)
		},
	} {
		t.Run("watchdog, "+how, func(t *testing.T) {
			t.Parallel()
			l := newSilentLeader(t, testkit.Numbered(3)...)
			s := testkit.NewConsumer(t, testkit.Config(l.group, l.reached, testkit.DrainTimeout(drain)), l.topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			seam.LookEvery(s.Sub, 500*time.Millisecond)
			s.Start(t)
			s.Wait(t, 3)
			l.silence(t)
			end(t, l, s)
			s.Want(t, "0#1", "1#1", "2#1")
		})
		t.Run("re-read, "+how, func(t *testing.T) {
			t.Parallel()
			const records, keys = 400, 4
			l := newSilentLeader(t, testkit.Bulky(records, keys)...)
			cfg := testkit.Config(l.group, l.reached, testkit.DrainTimeout(drain), testkit.Ordering(ackpolicy.OrderByKey, 16))
			cfg.MaxBufferedBytes = 1 << 20
			s := testkit.Consume(t, cfg, l.topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				return ackpolicy.NackAfter(4 * time.Second) // and so those behind it wait, and are pushed out
			}, ackpolicy.NackOnError.Middleware)
			s.Wait(t, keys)
			l.silence(t)
			end(t, l, s)
		})
	}
}

// A topic that was deleted takes no commits any more: that is no reason to try until the time is up.
func TestCloseAfterTheTopicWasDeleted(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(3)...)
	cfg := testkit.Config(brokertest.Group(t), at, testkit.DrainTimeout(300*time.Millisecond))
	cfg.CommitInterval = time.Hour // the last commit is all there is
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 3)
	fault := broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.UnknownTopicOrPartition, Count: -1})
	began := time.Now()
	wantClosed(t, s.Stop, 300*time.Millisecond)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Close took %v, and %d commits", took, fault.Hits())
	}
	if n := fault.Hits(); n == 0 || n > 6 {
		t.Errorf("%d commits", n)
	}
	if len(testkit.Containing(s.Log.At("error"), "commit", topic)) == 0 {
		t.Errorf("no error line: %v", s.Log.At("error"))
	}
}

// The same with a topic that is deleted under its group, on whatever broker; and on a revocation.
func TestCloseWithoutItsTopic(t *testing.T) {
	t.Parallel()
	for protocol, change := range testkit.Protocols() {
		for _, how := range []string{"closing", "revoked"} {
			t.Run(protocol+", "+how, func(t *testing.T) {
				t.Parallel()
				const drain = 300 * time.Millisecond
				topic := testkit.NewTopic(t, 1, testkit.Numbered(3)...)
				cfg := testkit.Config(brokertest.Group(t), testkit.DrainTimeout(drain), change)
				cfg.CommitInterval = time.Hour
				s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
				s.Wait(t, 3)
				testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error { return a.DeleteTopic(topic) })
				began := time.Now()
				if how == "revoked" {
					other := testkit.Consume(t, testkit.Config(cfg.Kafka.ConsumerGroup, change), testkit.NewTopic(t, 1, testkit.Numbered(1)...), testkit.Succeed, ackpolicy.NackOnError.Middleware)
					other.Wait(t, 1) // of another topic, but the same group
					other.Stop()
				}
				wantClosed(t, s.Stop, drain)
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("took %v", took)
				}
				wantMembers(t, cfg.Kafka.ConsumerGroup, 0)
			})
		}
	}
}
