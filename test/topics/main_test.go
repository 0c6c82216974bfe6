// Package topics tests subscriptions of several topics: lists and patterns.
package topics_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const partitions = 2

// soon has a client notice soon what becomes of topics, and create none.
func soon(c *ackpolicy.SubscriberConfig) {
	cfg := c.Kafka.OverwriteSaramaConfig
	cfg.Metadata.AllowAutoTopicCreation = false
	cfg.Metadata.RefreshFrequency = 300 * time.Millisecond
	cfg.Consumer.Retry.Backoff = 100 * time.Millisecond
	cfg.Consumer.Group.Session.Timeout = 30 * time.Second // nobody dies, and on a busy machine nobody is to be given up
}

func create(t *testing.T, topics ...string) {
	t.Helper()
	for _, topic := range topics {
		testkit.Eventually(t, "the creation of "+topic, func() bool { // its deletion may be under way
			return brokertest.CreateTopic(testkit.Shared.Addrs(), topic, partitions) == nil
		})
		for p := range int32(partitions) {
			testkit.Eventually(t, "an empty partition", func() bool {
				end, err := brokertest.EndOffset(testkit.Shared.Addrs(), topic, p)
				return err == nil && end == 0
			})
		}
	}
}

func remove(t *testing.T, topic string) {
	t.Helper()
	testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error { return a.DeleteTopic(topic) })
}

// fill writes n keyed records to each partition of a topic.
func fill(t *testing.T, topic string, n int) {
	t.Helper()
	for p := range int32(partitions) {
		var records []brokertest.Record
		for i := range n {
			records = append(records, brokertest.KeyValue(fmt.Sprint("key-", i%3), fmt.Sprint(i)))
		}
		testkit.Produce(t, topic, p, records...)
	}
}

// stored waits until the group has stored an offset for each partition of the topics.
func stored(t *testing.T, group string, want int64, topics ...string) {
	t.Helper()
	for _, topic := range topics {
		for p := range int32(partitions) {
			testkit.WaitCommitted(t, group, topic, p, want)
		}
	}
}

func awaitMembers(t *testing.T, group string, want int) {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("a group of %d", want), func() bool {
		n, state, err := brokertest.Members(testkit.Shared.Addrs(), group)
		return err == nil && n == want && state == "Stable"
	})
}

// handled has what handlers were given.
type handled struct {
	mu  sync.Mutex
	all []*ackpolicy.Delivery // in order
}

func (h *handled) add(d *ackpolicy.Delivery) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, d)
}

// wantOnce asserts that each record of a topic came once, and those of each key in order. ends has
// the ends of the partitions.
func (h *handled) wantOnce(t *testing.T, topic string, ends ...int64) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	type lane struct {
		partition int32
		key       string
	}
	last, times := map[lane]int64{}, map[string]int{}
	for _, d := range h.all {
		if d.Topic() != topic {
			continue
		}
		at := lane{d.Partition(), string(d.Key())}
		if before, ok := last[at]; ok && d.Offset() < before {
			t.Errorf("%s/%d: offset %d of %s came after %d", topic, d.Partition(), d.Offset(), d.Key(), before)
		}
		last[at] = d.Offset()
		times[fmt.Sprintf("%d/%d", d.Partition(), d.Offset())]++
	}
	for p, end := range ends {
		for offset := range end {
			if n := times[fmt.Sprintf("%d/%d", p, offset)]; n != 1 {
				t.Errorf("%s/%d: offset %d came %d times", topic, p, offset, n)
			}
		}
	}
}

// of returns how many deliveries of a topic there were.
func (h *handled) of(topic string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.all {
		if d.Topic() == topic {
			n++
		}
	}
	return n
}
