package lifecycle_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// ownStrategy is one of an application's own type, with the state that sarama's sticky one has.
type ownStrategy struct{ sarama.BalanceStrategy }

func (ownStrategy) Name() string { return "own" }

// rememberingStrategy is one that remembers what its member was assigned.
type rememberingStrategy struct {
	ownStrategy
	generation int32
}

func (s *rememberingStrategy) OnAssignment(_ *sarama.ConsumerGroupMemberAssignment, generation int32) {
	s.generation = generation
}

// Subscribers that share a sarama configuration do not share the state of its balance strategies. Each of them is the leader of
// its group, and makes a plan. (The race detector, or "concurrent map writes", says when they do.)
func TestStrategiesAreNotShared(t *testing.T) {
	t.Parallel()
	for name, strategy := range map[string]sarama.BalanceStrategy{
		"sticky":             sarama.NewBalanceStrategySticky(),
		"cooperative-sticky": sarama.NewBalanceStrategyCooperativeSticky(),
		"own":                ownStrategy{sarama.NewBalanceStrategySticky()},
	} {
		for field, set := range map[string]testkit.Option{
			"Strategy": func(c *ackpolicy.SubscriberConfig) {
				c.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.Strategy = strategy
			},
			"GroupStrategies": func(c *ackpolicy.SubscriberConfig) {
				c.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{strategy}
			},
		} {
			t.Run(name+" "+field, func(t *testing.T) {
				t.Parallel()
				const subscribers, partitions = 6, 4
				topic := testkit.NewTopic(t, partitions)
				cfg := testkit.Config(brokertest.Group(t), set)
				first := &assignments{}
				cfg.Hooks.Assigned = first.add
				var subs sync.WaitGroup
				for range subscribers {
					cfg.Kafka.ConsumerGroup = brokertest.Group(t)
					sub := testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
					subs.Go(func() {
						if _, err := sub.Subscribe(context.Background(), topic); err != nil {
							t.Error(err)
						}
					})
				}
				subs.Wait()
				testkit.Eventually(t, "all partitions for each", func() bool { return first.count() >= subscribers*partitions })
			})
		}
	}
}

type assignments struct {
	mu sync.Mutex
	n  int
}

func (a *assignments) add(ackpolicy.AssignedEvent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
}

func (a *assignments) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

// A balance strategy of the application that remembers its member cannot serve a second one: Subscribe returns an error
// until the first has left.
func TestStrategyWithAMemoryServesOneMember(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1)
	cfg := testkit.Config(brokertest.Group(t), testkit.BalanceStrategy(&rememberingStrategy{ownStrategy: ownStrategy{sarama.NewBalanceStrategySticky()}}))
	first, second := testkit.NewSubscriber(t, cfg, testkit.NewLog(t)), testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
	if _, err := first.Subscribe(context.Background(), topic); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []*ackpolicy.Subscriber{first, second} {
		if _, err := sub.Subscribe(context.Background(), topic); err == nil || !strings.Contains(err.Error(), "rememberingStrategy") {
			t.Errorf("got %v, want an error that names the strategy", err)
		}
	}
	testkit.Check(t, first.Close())
	if _, err := second.Subscribe(context.Background(), topic); err != nil {
		t.Error(err)
	}
}

// panickingStrategy fails the first plan.
type panickingStrategy struct {
	ownStrategy
	once sync.Once
}

func (s *panickingStrategy) Plan(members map[string]sarama.ConsumerGroupMemberMetadata, topics map[string][]int32) (sarama.BalanceStrategyPlan, error) {
	s.once.Do(func() { panic("no plan") })
	return s.ownStrategy.Plan(members, topics)
}

// A balance strategy of the application that panics fails the rebalance, not the process; the member joins again.
func TestStrategyPanics(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t), testkit.BalanceStrategy(&panickingStrategy{ownStrategy: ownStrategy{sarama.NewBalanceStrategySticky()}})), topic,
		testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 1)
	testkit.Eventually(t, "a line that says so", func() bool { return len(testkit.Containing(s.Log.At("error"), "panicked: no plan")) > 0 })
}
