package batches_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// untilFull makes batches that wait until they are full.
func untilFull(size int) ackpolicy.BatchConfig {
	return ackpolicy.BatchConfig{Size: size, Wait: time.Hour}
}

var letterTopic = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}}

// orderings are those of the tests, with keys.
var orderings = []ackpolicy.Ordering{ackpolicy.OrderByPartition, ackpolicy.OrderByKey, ackpolicy.Unordered}

func keyed(n, keys int) []brokertest.Record {
	records := make([]brokertest.Record, n)
	for i := range records {
		records[i] = brokertest.KeyValue(fmt.Sprint("key-", i%keys), fmt.Sprint(i))
	}
	return records
}

// One poisonous record in 500, known by its index: one letter, 499 acks, one call.
func TestPoisonByIndex(t *testing.T) {
	t.Parallel()
	for _, ordering := range orderings {
		t.Run(fmt.Sprint(ordering), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, keyed(500, 50)...)
			cfg := testkit.Config(group, testkit.Ordering(ordering, 0))
			cfg.DeadLetter = letterTopic
			s, c := consume(t, cfg, untilFull(500), topic, func(_ context.Context, messages []*message.Message, ds []*ackpolicy.Delivery) error {
				return ackpolicy.BatchError{123: testkit.ErrPoison}
			}, ackpolicy.RejectOnError.Middleware)
			testkit.WaitCommitted(t, group, topic, 0, 500)
			s.Stop()
			if n := c.get(); len(n) != 1 || len(n[0]) != 500 {
				t.Errorf("calls: %v", c.names())
			}
			for i, d := range c.get()[0] {
				want := ackpolicy.Acked
				if i == 123 {
					want = ackpolicy.Rejected
				}
				if d.Offset() != int64(i) || d.Status() != want {
					t.Errorf("message %d: offset %d, %v; want %v", i, d.Offset(), d.Status(), want)
				}
			}
			testkit.Letters(t, topic+".dlq", 0, 1)
		})
	}
}

// One poisonous record in 500, of which the handler cannot say which one it is: one letter, 499 acks.
func TestPoisonIsFound(t *testing.T) {
	t.Parallel()
	for _, ordering := range orderings {
		t.Run(fmt.Sprint(ordering), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, keyed(500, 50)...)
			cfg := testkit.Config(group, testkit.Ordering(ordering, 0))
			cfg.DeadLetter, cfg.MaxDeliveries = letterTopic, 3
			handled := map[int64]int{}
			s, _ := consume(t, cfg, ackpolicy.BatchConfig{Wait: 20 * time.Millisecond}, topic, func(_ context.Context, messages []*message.Message, ds []*ackpolicy.Delivery) error {
				if slices.ContainsFunc(ds, func(d *ackpolicy.Delivery) bool { return d.Offset() == 123 }) {
					return testkit.ErrPoison
				}
				for _, d := range ds {
					handled[d.Offset()]++
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			testkit.WaitCommitted(t, group, topic, 0, 500)
			s.Stop()
			for offset := range int64(500) {
				if want := map[bool]int{true: 1}[offset != 123]; handled[offset] != want {
					t.Errorf("offset %d was handled %d times, want %d", offset, handled[offset], want)
				}
			}
			testkit.Letters(t, topic+".dlq", 0, 1)
		})
	}
}
