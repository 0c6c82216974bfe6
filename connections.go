package ackpolicy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/connections"
	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/strategy"
)

// Connections are shared by all Subscribers that have a pointer to the same Connections in
// SubscriberConfig.Connections: the metadata of the cluster, the connections that commit, those of
// DeadLetterTopic, and what MaxBufferedBytes and MaxInFlightTotal allow. Each subscription still has one
// connection of its own as a member of its group, and one to each broker that it reads from.
//
// The zero value is ready for use. Connections are made for the first subscription and closed with the
// last one. All Subscribers must have the same Kafka.Brokers, MaxBufferedBytes, MaxInFlightTotal, and
// the same settings in their sarama configurations as far as they concern connections: ClientID,
// Version, Net and Metadata.
//
// A Connections must not be copied after first use.
type Connections struct {
	mu        sync.Mutex
	first     *SubscriberConfig // of the first Subscriber; nil: there was none
	resources *consumer.Resources
	letters   map[letterKey]*connections.Pool
}

// join adds a Subscriber. Its configuration has all defaults.
func (c *Connections) join(config *SubscriberConfig) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == nil {
		c.first, c.resources = config, consumer.NewResources(config.MaxBufferedBytes, config.MaxInFlightTotal)
		return nil
	}
	var errs []error
	differs := func(setting string, equal bool) {
		if !equal {
			errs = append(errs, fmt.Errorf("Connections: %s: differs from that of the first Subscriber with the same Connections", setting))
		}
	}
	first := c.first
	differs("Kafka.Brokers", slices.Equal(first.Kafka.Brokers, config.Kafka.Brokers))
	differs("MaxBufferedBytes", first.MaxBufferedBytes == config.MaxBufferedBytes)
	differs("MaxInFlightTotal", first.MaxInFlightTotal == config.MaxInFlightTotal)
	if a, b := first.Kafka.OverwriteSaramaConfig, config.Kafka.OverwriteSaramaConfig; a != b {
		differs("Kafka.OverwriteSaramaConfig.ClientID", a.ClientID == b.ClientID)
		differs("Kafka.OverwriteSaramaConfig.Version", a.Version == b.Version)
		differs("Kafka.OverwriteSaramaConfig.Net", alike(reflect.ValueOf(a.Net), reflect.ValueOf(b.Net)))
		differs("Kafka.OverwriteSaramaConfig.Metadata", alike(reflect.ValueOf(a.Metadata), reflect.ValueOf(b.Metadata)))
	}
	if len(errs) > 0 {
		return fmt.Errorf("ackpolicy: bad SubscriberConfig: %w", errors.Join(errs...))
	}
	return nil
}

// alike is reflect.DeepEqual, except that functions are equal if they have the same code.
func alike(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.Struct:
		for i := range a.NumField() {
			if !alike(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	case reflect.Func:
		return a.Pointer() == b.Pointer()
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}

// letterKey identifies what letters are written with: the brokers, and the configuration of their producer.
type letterKey struct {
	brokers string
	config  *sarama.Config
}

// joinLetters returns a share of the connections of DeadLetterTopics with the same brokers and configuration.
func (c *Connections) joinLetters(ctx context.Context, brokers []string, config *sarama.Config) (*connections.Lease, error) {
	key := letterKey{fmt.Sprintf("%q", brokers), config}
	c.mu.Lock()
	if c.letters == nil {
		c.letters = map[letterKey]*connections.Pool{}
	}
	if c.letters[key] == nil {
		c.letters[key] = connections.New()
	}
	pool := c.letters[key]
	c.mu.Unlock()
	return pool.Join(ctx, connections.Config{Brokers: brokers, Clients: []*sarama.Config{letterConfig(config)}})
}

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
