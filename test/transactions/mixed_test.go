package transactions_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// TestMixedGroup lets members without transactions join a group with them, and leave it.
func TestMixedGroup(t *testing.T) {
	t.Parallel()
	others := map[string]func(ackpolicy.SubscriberConfig, *testkit.Log) (message.Subscriber, error){
		"watermill-kafka": func(c ackpolicy.SubscriberConfig, log *testkit.Log) (message.Subscriber, error) {
			c.Kafka.Unmarshaler = kafka.DefaultMarshaler{}
			return kafka.NewSubscriber(c.Kafka, log)
		},
		"a Subscriber without Transactions": func(c ackpolicy.SubscriberConfig, log *testkit.Log) (message.Subscriber, error) {
			c.Transactions = nil
			return ackpolicy.NewSubscriber(c, log)
		},
	}
	for protocol, option := range testkit.Protocols() {
		for name, other := range others {
			t.Run(protocol+"/"+name, func(t *testing.T) {
				t.Parallel()
				s := newSpec(t, 2, 0)
				s.Change = option
				log := testkit.NewLog(t)
				first := testkit.NewSubscriber(t, s.config(), log)
				consume(t, first, s.In)
				second := testkit.NewSubscriber(t, s.config(), log)
				consume(t, second, s.In)
				testkit.AwaitGroupOfTwo(t, testkit.Shared, s.Group)
				subs := []*ackpolicy.Subscriber{first, second}
				if slices.ContainsFunc(subs, isMixed) || strings.Contains(first.Guarantees(), "NOW") {
					t.Fatal("all members have transactions, and the group is said to be mixed")
				}

				without, err := other(s.config(), testkit.NewLog(t))
				testkit.Check(t, err)
				consume(t, without, s.In)
				testkit.Eventually(t, "both to see the member", func() bool { return isMixed(first) && isMixed(second) })
				if h := first.Health(); slices.ContainsFunc(h.Problems, func(p ackpolicy.Problem) bool { return p.Code == ackpolicy.ProblemMixedGroup && p.NotReady }) {
					t.Error("a mixed group makes the Subscriber not ready:", h)
				}
				if !strings.Contains(first.Guarantees(), "NOW the consumer group has a member without Transactions") {
					t.Error("Guarantees:", first.Guarantees())
				}
				twice := func(level, line string) { // each of the two subscribers writes it, and once
					t.Helper()
					count := func() int { return len(linesWith(log.At(level), line)) }
					if testkit.Poll(func() bool { return count() >= 2 }); count() != 2 {
						t.Errorf("%d lines of two subscribers: %s", count(), line)
					}
				}
				twice("error", "a member without Transactions")

				testkit.Check(t, without.Close())
				testkit.Eventually(t, "both to see that it has left", func() bool { return !isMixed(first) && !isMixed(second) })
				twice("info", "All members of the consumer group have Transactions")
			})
		}
	}
}

// consume acks whatever comes.
func consume(t *testing.T, sub message.Subscriber, topic string) {
	t.Helper()
	messages, err := sub.Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	go func() {
		for msg := range messages {
			msg.Ack()
		}
	}()
}

func isMixed(s *ackpolicy.Subscriber) bool {
	return slices.ContainsFunc(s.Health().Problems, func(p ackpolicy.Problem) bool { return p.Code == ackpolicy.ProblemMixedGroup })
}

func linesWith(lines []string, text string) []string {
	return slices.DeleteFunc(lines, func(l string) bool { return !strings.Contains(l, text) })
}

// TestMixedStrategies mixes members whose list of strategies differs.
func TestMixedStrategies(t *testing.T) {
	t.Parallel()
	s := newSpec(t, 2, 0)
	strategies := func(list ...sarama.BalanceStrategy) *ackpolicy.Subscriber {
		s.Change = func(c *ackpolicy.SubscriberConfig) {
			c.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.GroupStrategies = list
		}
		return testkit.NewSubscriber(t, s.config(), testkit.NewLog(t))
	}
	both := strategies(sarama.NewBalanceStrategySticky(), sarama.NewBalanceStrategyRange())
	one := strategies(sarama.NewBalanceStrategyRange())
	consume(t, both, s.In)
	consume(t, one, s.In)
	testkit.AwaitGroupOfTwo(t, testkit.Shared, s.Group)
	if isMixed(both) || isMixed(one) {
		t.Error("all members have transactions, and the group is said to be mixed")
	}
}
