package ackpolicy_test

import (
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Cooperative: a member goes on with what it keeps while the group waits for another member that does not answer. Its
// JoinGroup, which is answered only then, must not hold up its fetches.
func TestCooperativeRebalanceStopsNobodyElse(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for a session timeout of 6 s")
	}
	group, topic := brokertest.Group(t), newTopic(t, 2)
	cooperative := strategy(sarama.NewBalanceStrategyCooperativeSticky())
	var mu sync.Mutex
	var times []time.Time
	first := consume(t, config(group, cooperative), topic, func(*message.Message, *ackpolicy.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		times = append(times, time.Now())
		return nil
	}, ackpolicy.NackOnError.Middleware)
	startSteady(t, topic, 2, 100, 1)
	first.journal.wait(t, 1)
	nothing := func(*message.Message, *ackpolicy.Delivery) error { return nil }
	network := &brokertest.Network{}
	cfg := config(group, cooperative, drainTimeout(time.Second))
	network.Use(cfg.Kafka.OverwriteSaramaConfig)
	silent := consume(t, cfg, topic, nothing, ackpolicy.NackOnError.Middleware)
	silent.journal.wait(t, 1)

	network.Delay(time.Hour)
	began := time.Now()
	third := consume(t, config(group, cooperative), topic, nothing, ackpolicy.NackOnError.Middleware)
	third.journal.wait(t, 1) // the silent one is out of the group
	waited := time.Since(began)
	network.Heal()

	mu.Lock()
	defer mu.Unlock()
	var longest time.Duration
	last := began
	for _, at := range times {
		if at.After(began) {
			longest, last = max(longest, at.Sub(last)), at
		}
	}
	if longest = max(longest, time.Since(last)); longest > waited/2 {
		t.Errorf("the first member stood still for %v of the %v that the rebalance took", longest, waited)
	}
}
