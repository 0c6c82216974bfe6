package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/connections"
	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
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
