package lifecycle_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A member that is waiting inside of JoinGroup for the others leaves at once, and no ghost stays in the group.
func TestCloseInsideJoinGroup(t *testing.T) {
	t.Parallel()
	for protocol, change := range testkit.Protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			if protocol == "cooperative" && !testkit.Shared.Real() {
				t.Skip("kfake waits for a member that has left out of SyncGroup")
			}
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			slow := newSnare() // holds the rebalance
			cfg := testkit.Config(group, change, testkit.DrainTimeout(testkit.Patience))
			cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.Timeout = 2 * testkit.Patience
			first := testkit.Consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error {
				slow.hang()
				return nil
			}, ackpolicy.NackOnError.Middleware)
			free := sync.OnceFunc(func() { close(slow.free) })
			defer free()
			d := first.Wait(t, 1)
			sub := testkit.NewSubscriber(t, testkit.Config(group, change, testkit.DrainTimeout(5*time.Second)), first.Log)
			out, err := sub.Subscribe(context.Background(), topic)
			testkit.Check(t, err)
			if protocol == "eager" {
				testkit.Await(t, "the first member's drain", d.Draining()) // it has learnt of the other, which waits for it
			} else {
				testkit.Eventually(t, "a second member", func() bool {
					n, _, err := brokertest.Members(testkit.Shared.Addrs(), group)
					return err == nil && n == 2
				})
			}
			began := time.Now()
			testkit.Check(t, sub.Close())
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("Close took %v", took)
			}
			if _, ok := <-out; ok {
				t.Error("a message")
			}
			testkit.Eventually(t, "the end of the membership", func() bool {
				n, _, err := brokertest.Members(testkit.Shared.Addrs(), group)
				return err == nil && n == 1
			})
			free()
			first.Stop()
			wantMembers(t, group, 0)
		})
	}
}

// deaf is a member that takes part in a rebalance once, and never again.
type deaf struct{ *snare }

func (d deaf) Setup(sarama.ConsumerGroupSession) error { d.hang(); return nil }

func (d deaf) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (d deaf) ConsumeClaim(session sarama.ConsumerGroupSession, _ sarama.ConsumerGroupClaim) error {
	<-session.Context().Done()
	return nil
}

// join makes it a member, until the test ends.
func (d deaf) join(t *testing.T, cfg ackpolicy.SubscriberConfig, topic string) {
	t.Helper()
	group, err := sarama.NewConsumerGroup(cfg.Kafka.Brokers, cfg.Kafka.ConsumerGroup, cfg.Kafka.OverwriteSaramaConfig)
	testkit.Check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		_ = group.Consume(ctx, []string{topic}, d)
	}()
	t.Cleanup(func() {
		cancel()
		close(d.free)
		<-consumed
		_ = group.Close()
	})
	testkit.Await(t, "its part in a rebalance", d.met)
}

// The same for a member that joins again: it had joined before, and the group then waits for one that does not respond.
func TestCloseWhileJoiningAgain(t *testing.T) {
	t.Parallel()
	for protocol := range testkit.Protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t)
			topic, at := testkit.FakeTopicOf(t, broker, 3)
			group := brokertest.Group(t)
			member := func(name string) ackpolicy.SubscriberConfig {
				cfg := testkit.Config(group, at, testkit.Protocols()[protocol], testkit.DrainTimeout(5*time.Second))
				cfg.Kafka.OverwriteSaramaConfig.ClientID = name
				cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.Timeout = 2 * testkit.Patience
				cfg.Kafka.OverwriteSaramaConfig.Net.ReadTimeout = 3 * testkit.Patience
				return cfg
			}
			var joins atomic.Int32
			broker.Kfake().ControlKey(int16(kmsg.JoinGroup), func(request kmsg.Request) (kmsg.Response, error, bool) {
				broker.Kfake().KeepControl()
				if strings.HasPrefix(request.(*kmsg.JoinGroupRequest).MemberID, "ours-") {
					joins.Add(1)
				}
				return nil, nil, false
			})
			log := testkit.NewLog(t)
			ours := testkit.NewSubscriber(t, member("ours"), log)
			_, err := ours.Subscribe(context.Background(), topic)
			testkit.Check(t, err)
			testkit.Eventually(t, "the first session", func() bool { return len(testkit.Containing(log.At("info"), "Joined the consumer group")) > 0 })
			deaf{newSnare()}.join(t, member("deaf"), topic)
			third := testkit.NewSubscriber(t, member("third"), log)
			_, err = third.Subscribe(context.Background(), topic)
			testkit.Check(t, err)
			// The first for itself, the second for the deaf member, and then for the third; or, in a cooperative
			// rebalance, since it has given a partition up.
			testkit.Eventually(t, "the third JoinGroup", func() bool { return joins.Load() >= 3 })
			began := time.Now()
			testkit.Check(t, ours.Close())
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("Close took %v", took)
			}
			testkit.Eventually(t, "the end of the membership", func() bool {
				n, _, err := brokertest.Members(broker.Addrs(), group)
				return err == nil && n == 2
			})
			testkit.Check(t, third.Close())
		})
	}
}

// A static member inside of JoinGroup goes at once, too; its id stays in the group, as it is to.
func TestCloseInsideJoinGroupAsAStaticMember(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	slow := newSnare()
	cfg := testkit.Config(group, testkit.DrainTimeout(testkit.Patience))
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.Timeout = 2 * testkit.Patience
	first := testkit.Consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error {
		slow.hang()
		return nil
	}, ackpolicy.NackOnError.Middleware)
	defer close(slow.free)
	d := first.Wait(t, 1)
	static := testkit.Config(group, testkit.DrainTimeout(5*time.Second))
	static.Kafka.OverwriteSaramaConfig.Consumer.Group.InstanceId = "static"
	sub := testkit.NewSubscriber(t, static, first.Log)
	_, err := sub.Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	testkit.Await(t, "the first member's drain", d.Draining())
	began := time.Now()
	testkit.Check(t, sub.Close())
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Close took %v", took)
	}
}

// Cooperative: the group is a generation ahead of the session while sarama's rejoin waits to try again, 2 s by
// default, and for good once the session's context has ended meanwhile. The last commit is refused until its time is up.
func TestCloseAmidACooperativeRejoin(t *testing.T) {
	t.Parallel()
	for rounds := 1; rounds <= 2; rounds++ {
		t.Run(fmt.Sprint(rounds, " in a row"), func(t *testing.T) {
			t.Parallel()
			closeAmidRejoins(t, rounds)
		})
	}
}

func closeAmidRejoins(t *testing.T, rounds int) {
	const partitions = 2
	broker := brokertest.NewFake(t)
	group, topic := brokertest.Group(t), brokertest.Topic(t)
	testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, partitions))
	for p := range int32(partitions) {
		_, err := brokertest.Produce(broker.Addrs(), topic, p, testkit.Numbered(5)...)
		testkit.Check(t, err)
	}
	member := func() *testkit.Service {
		cfg := testkit.Config(group, testkit.CommitOnDemand, testkit.BalanceStrategy(sarama.NewBalanceStrategyCooperativeSticky()))
		cfg.Kafka.Brokers = broker.Addrs()
		return testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	}
	first := member()
	first.Wait(t, 5*partitions)

	// A member's join bumps the generation, and the next one's makes the broker refuse the first one's SyncGroup, so that
	// it waits for Rebalance.Retry.Backoff before it tries again: 2 s.
	var held atomic.Int32
	gates := make(chan chan struct{}, 1)
	broker.Kfake().ControlKey(int16(kmsg.SyncGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
		held.Add(1)
		broker.Kfake().SleepControl(func() {
			gate := <-gates
			gates <- gate
			<-gate
		})
		return nil, nil, false
	})
	members := []*testkit.Service{member()}
	for round := range rounds {
		gate := make(chan struct{})
		gates <- gate
		gone := func() bool { // it need not wait for the second round
			select {
			case <-first.Ended:
				return true
			default:
				return false
			}
		}
		testkit.Eventually(t, "members in SyncGroup", func() bool { return held.Load() >= int32(2+round) || gone() })
		members = append(members, member())
		testkit.Eventually(t, "the next rebalance", func() bool {
			_, state, err := brokertest.Members(broker.Addrs(), group)
			return gone() || (err == nil && state == "PreparingRebalance")
		})
		held.Store(0)
		<-gates
		if round == 0 {
			go first.Stop()
		}
		close(gate)
	}
	open := make(chan struct{})
	close(open)
	gates <- open
	testkit.Await(t, "the first member's end", first.Ended)

	for p := range int32(partitions) {
		stored, err := brokertest.Committed(broker.Addrs(), group, topic, p)
		testkit.Check(t, err)
		if stored != 5 {
			t.Errorf("partition %d: stored %d, want 5", p, stored)
		}
	}
	for _, m := range members {
		m.Stop()
	}
}
