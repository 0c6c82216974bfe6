package ackpolicy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"sync"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/strategy"
)

// maxInstanceID is the longest static member id that Kafka accepts.
const maxInstanceID = 249

// instances holds the static member ids in use in this process. Kafka identifies a member
// by group and id: two members with the same id fence each other, whether or not they
// belong to the same Subscriber.
var instances = instanceRegistry{used: map[instanceKey]struct{}{}}

type instanceRegistry struct {
	mu   sync.Mutex
	used map[instanceKey]struct{}
}

type instanceKey struct{ group, instance string }

// take returns the static member id of a topic's next subscription. The id contains the
// topic, since the broker gives a returning member its old assignment, whatever it
// subscribes to now, and the order of Subscribes differs from start to start.
func (r *instanceRegistry) take(group, id, topic string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := 1; ; n++ {
		key := instanceKey{group, instanceID(id, topic, n)}
		if _, ok := r.used[key]; !ok {
			r.used[key] = struct{}{}
			return key.instance
		}
	}
}

func (r *instanceRegistry) release(group, instance string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.used, instanceKey{group, instance})
}

// instanceID returns the id of a topic's n-th subscription. The number comes before the
// topic, or the second one of "orders" would equal the first one of a topic "orders-2".
func instanceID(id, topic string, n int) string {
	name := id + "-" + topic
	if n > 1 {
		name = fmt.Sprintf("%s.%d.%s", id, n, topic)
	}
	if len(name) > maxInstanceID {
		sum := sha256.Sum256([]byte(name))
		hash := hex.EncodeToString(sum[:8])
		name = name[:maxInstanceID-len(hash)-1] + "-" + hash
	}
	return name
}

// strategiesInUse holds the application's balance strategies that keep state of a member.
var strategiesInUse = strategyRegistry{used: map[sarama.BalanceStrategy]struct{}{}}

type strategyRegistry struct {
	mu   sync.Mutex
	used map[sarama.BalanceStrategy]struct{}
}

// statefulStrategies returns the strategies of a configuration that can serve one member only.
func statefulStrategies(cfg *sarama.Config) (stateful []sarama.BalanceStrategy) {
	strategies := cfg.Consumer.Group.Rebalance.GroupStrategies
	if s := cfg.Consumer.Group.Rebalance.Strategy; s != nil {
		strategies = []sarama.BalanceStrategy{s}
	}
	for _, s := range strategies {
		if reflect.TypeOf(s).Comparable() && strategy.KeepsState(s) {
			stateful = append(stateful, s)
		}
	}
	return stateful
}

func (r *strategyRegistry) take(strategies []sarama.BalanceStrategy) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range strategies {
		if _, ok := r.used[s]; ok {
			return fmt.Errorf("ackpolicy: Consumer.Group.Rebalance: another subscription of this process uses the same balance strategy %T, "+
				"whose OnAssignment remembers one member's assignment: give each subscription a Subscriber whose configuration has one of its own", s)
		}
	}
	for _, s := range strategies {
		r.used[s] = struct{}{}
	}
	return nil
}

func (r *strategyRegistry) release(strategies []sarama.BalanceStrategy) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range strategies {
		delete(r.used, s)
	}
}
