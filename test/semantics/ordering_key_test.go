package semantics_test

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// customer is the key by which these tests order: what stands before the dash in the record's own key.
func customer(r *sarama.ConsumerMessage) []byte {
	before, _, ok := bytes.Cut(r.Key, []byte("-"))
	if !ok {
		return nil
	}
	return before
}

func orderedBy(key func(*sarama.ConsumerMessage) []byte) testkit.Option {
	return func(c *ackpolicy.SubscriberConfig) { c.Ordering, c.Key = ackpolicy.OrderByKey, key }
}

// Records are ordered by what Key returns: a nacked one holds its customer's, whatever their own keys, and nobody else's.
func TestOrderBySubscriberKey(t *testing.T) {
	t.Parallel()
	keys := []string{"ada-1", "bob-1", "ada-2", "bob-2", "alone", "ada-3", "alone"}
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed(keys...)...)
	var others atomic.Int32
	s := testkit.Consume(t, testkit.Config(group, orderedBy(customer)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if string(d.Key()) != keys[d.Offset()] {
			t.Errorf("Delivery.Key of offset %d: %s", d.Offset(), d.Key())
		}
		switch {
		case !strings.HasPrefix(string(d.Key()), "ada"):
			others.Add(1)
		case d.Offset() == 0 && others.Load() < 4:
			return testkit.ErrBoom
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, int64(len(keys)))
	s.Stop()
	var ada []int64
	for _, d := range s.All() {
		if d.Status() == ackpolicy.Acked && strings.HasPrefix(string(d.Key()), "ada") {
			ada = append(ada, d.Offset())
		}
	}
	if !slices.Equal(ada, []int64{0, 2, 5}) {
		t.Errorf("ada's records: %v", ada)
	}
}

// A Key that fails costs nothing: the record is ordered by its own key, and the log says so.
func TestSubscriberKeyFails(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(){"panic": func() { panic("bug in Key") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "c")...)
			s := testkit.Consume(t, testkit.Config(group, orderedBy(func(r *sarama.ConsumerMessage) []byte {
				if r.Offset == 1 {
					fail()
				}
				return []byte("all")
			})), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			testkit.WaitCommitted(t, group, topic, 0, 3)
			s.Stop()
			testkit.WantOnce(t, s, "0#1", "1#1", "2#1")
			if lines := testkit.Containing(s.Log.At("error"), "SubscriberConfig.Key failed", "kafka_partition_offset=1"); len(lines) != 1 {
				t.Errorf("want one line, got %v", s.Log.At("error"))
			}
		})
	}
}

// The order by Key holds over a restart and for records that were pushed out of memory, and letters of a key are stored
// in order.
func TestSubscriberKeyIsKept(t *testing.T) {
	t.Parallel()
	const records = 60
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1)
	for i := range records {
		testkit.Produce(t, topic, 0, brokertest.KeyValue([]string{"ada-", "bob-"}[i%2]+string(rune('A'+i)), strings.Repeat("x", 10_000)))
	}
	letters := &unsteady{}
	var mu sync.Mutex
	handled := map[string][]int64{}
	cfg := testkit.Config(group, orderedBy(customer), func(c *ackpolicy.SubscriberConfig) {
		c.MaxBufferedBytes, c.DeadLetter = 100_000, letters
	})
	run := func() *testkit.Service {
		return testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
			if d.Attempt() == 1 && d.Offset() < 2 {
				return ackpolicy.NackAfter(3 * time.Second) // and so all of them wait
			}
			mu.Lock()
			defer mu.Unlock()
			name := string(customer(&sarama.ConsumerMessage{Key: d.Key()}))
			handled[name] = append(handled[name], d.Offset())
			return ackpolicy.ErrReject
		}, ackpolicy.NackOnError.Middleware)
	}
	before := run()
	before.Wait(t, 2)
	before.Stop()
	after := run()
	testkit.WaitCommitted(t, group, topic, 0, records)
	after.Stop()
	for name, offsets := range handled {
		if len(offsets) != records/2 || !slices.IsSorted(offsets) {
			t.Errorf("%s: %v", name, offsets)
		}
		if stored := letters.of(name); !slices.Equal(stored, offsets) {
			t.Errorf("letters of %s: %v", name, stored)
		}
	}
}

// unsteady is a dead letter destination that refuses every third letter once.
type unsteady struct {
	mu     sync.Mutex
	tried  map[int64]bool
	stored map[string][]int64
}

func (u *unsteady) Send(_ context.Context, r *sarama.ConsumerMessage, _ ackpolicy.Letter) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stored == nil {
		u.tried, u.stored = map[int64]bool{}, map[string][]int64{}
	}
	if r.Offset%3 == 0 && !u.tried[r.Offset] {
		u.tried[r.Offset] = true
		return testkit.ErrBoom
	}
	name := string(customer(r))
	u.stored[name] = append(u.stored[name], r.Offset)
	return nil
}

func (u *unsteady) of(name string) []int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.stored[name])
}
