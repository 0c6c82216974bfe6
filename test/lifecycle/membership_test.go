package lifecycle_test

import (
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// One commit gets UNKNOWN_MEMBER_ID in response while heartbeats succeed: the member joins again, and its partitions continue.
func TestOneCommitIsFenced(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		broker := brokertest.NewFake(t)
		topic, at := testkit.FakeTopicOf(t, broker, 2)
		group := brokertest.Group(t)
		fault := broker.Kfake().Fault(kfake.Fault{
			Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.UnknownMemberID,
			When: func(request kmsg.Request) bool { // not the start position: the first commit of a record
				return request.(*kmsg.OffsetCommitRequest).Topics[0].Partitions[0].Offset > 0
			},
		})
		s := testkit.Consume(t, testkit.Config(group, at, rebalance), topic, testkit.Succeed,
			ackpolicy.NackOnError.Middleware)
		for p := range int32(2) {
			_, err := brokertest.Produce(broker.Addrs(), topic, p, testkit.Numbered(3)...)
			testkit.Check(t, err)
			testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, p, 3, testkit.Patience))
		}
		s.Stop()
		if fault.Hits() != 1 {
			t.Errorf("%d commits were fenced", fault.Hits())
		}
	})
}

// A member that has to wait for another one to finish its work says so, and that it has its partitions in the end.
func TestWaitForTheGroupIsTold(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 2, testkit.Numbered(1)...)
	eager := testkit.BalanceStrategy(sarama.NewBalanceStrategyRange())
	release := make(chan struct{})
	slow := testkit.Consume(t, testkit.Config(group, eager), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
		return testkit.Until(msg.Context(), release)
	}, ackpolicy.NackOnError.Middleware)
	slow.Wait(t, 1)
	second := testkit.Consume(t, testkit.Config(group, eager), topic, testkit.Succeed,
		ackpolicy.NackOnError.Middleware)
	reported := func(words ...string) func() bool {
		return func() bool {
			return len(testkit.Containing(second.Log.At("info"), append(words, "consumer_group="+group)...)) == 1
		}
	}
	testkit.Eventually(t, "a line that says what is waited for", reported("Waiting for the consumer group", "waiting_for="))
	close(release)
	testkit.Eventually(t, "a line that says it is over", reported("Joined the consumer group", "member_id=", "kafka_partitions="))
}

// Cooperative: a member continues with what it keeps while the group waits for another member that does not respond. Its
// JoinGroup, whose response comes only then, must not delay its fetches.
func TestCooperativeRebalanceStopsNobodyElse(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for a session timeout of 6 s")
	}
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 2)
	cooperative := testkit.BalanceStrategy(sarama.NewBalanceStrategyCooperativeSticky())
	var mu sync.Mutex
	var times []time.Time
	first := testkit.Consume(t, testkit.Config(group, cooperative), topic, func(*message.Message, *ackpolicy.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		times = append(times, time.Now())
		return nil
	}, ackpolicy.NackOnError.Middleware)
	testkit.StartProducer(t, topic, 2, 100, 1)
	first.Wait(t, 1)
	network := &brokertest.Network{}
	cfg := testkit.Config(group, cooperative, testkit.DrainTimeout(time.Second))
	network.Use(cfg.Kafka.OverwriteSaramaConfig)
	silent := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	silent.Wait(t, 1)

	network.Delay(time.Hour)
	began := time.Now()
	third := testkit.Consume(t, testkit.Config(group, cooperative), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	third.Wait(t, 1) // the silent one is out of the group
	waited := time.Since(began)
	network.Heal()

	mu.Lock()
	defer mu.Unlock()
	longest, last := testkit.LongestPause(began, times)
	if longest = max(longest, time.Since(last)); longest > waited/2 {
		t.Errorf("the first member stood still for %v of the %v that the rebalance took", longest, waited)
	}
}
