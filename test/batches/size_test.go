package batches_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A batch has records of all partitions, those of each in order, unless it is to have those of one only.
func TestPartitionsOfABatch(t *testing.T) {
	t.Parallel()
	for _, one := range []bool{false, true} {
		t.Run(fmt.Sprint("one: ", one), func(t *testing.T) {
			t.Parallel()
			const partitions, each = 4, 25
			group, topic := brokertest.Group(t), testkit.FilledTopic(t, partitions, each)
			config := untilFull(partitions * each)
			config.OnePartition = one
			if one {
				config.Size = each
			}
			s, c := consume(t, testkit.Config(group), config, topic, succeed, ackpolicy.NackOnError.Middleware)
			for p := range int32(partitions) {
				testkit.WaitCommitted(t, group, topic, p, each)
			}
			s.Stop()
			calls := c.get()
			if want := map[bool]int{false: 1, true: partitions}[one]; len(calls) != want {
				t.Errorf("%d batches, want %d: %v", len(calls), want, c.names())
			}
			for _, ds := range calls {
				next := map[int32]int64{}
				for _, d := range ds {
					if d.Offset() != next[d.Partition()] {
						t.Errorf("offset %d of partition %d, want %d", d.Offset(), d.Partition(), next[d.Partition()])
					}
					next[d.Partition()]++
				}
				if one && len(next) > 1 {
					t.Errorf("a batch of partitions %v", next)
				}
			}
		})
	}
}

// Bytes closes a batch. A record that is larger has a batch of its own.
func TestBytesOfABatch(t *testing.T) {
	t.Parallel()
	records := append(testkit.Sized(6, 1000), testkit.Sized(1, 10_000)...)
	records = append(records, testkit.Sized(2, 1000)...)
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, records...)
	s, c := consume(t, testkit.Config(group), ackpolicy.BatchConfig{Bytes: 4000, Wait: 200 * time.Millisecond}, topic, succeed, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 9)
	s.Stop()
	var sizes []int
	for _, ds := range c.get() {
		sizes = append(sizes, len(ds))
	}
	if want := []int{3, 3, 1, 2}; !slices.Equal(sizes, want) {
		t.Errorf("batches of %v, want %v", sizes, want)
	}
}

// A Size that is there for Bytes alone to count costs nothing before there are as many records.
func TestSizeWithoutAnEnd(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Sized(2000, 100)...)
	s, c := consume(t, testkit.Config(group), ackpolicy.BatchConfig{Size: math.MaxInt, Bytes: 300_000, Wait: 50 * time.Millisecond, Concurrency: 2}, topic,
		succeed, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 2000)
	s.Stop()
	most := 0
	for _, ds := range c.get() {
		most = max(most, len(ds))
	}
	if most < 600 {
		t.Errorf("the largest batch has %d records, there was room for more", most)
	}
}

// Without Wait a batch has what is there; with it, a record waits no longer than that for others.
func TestWaitOfABatch(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{ackpolicy.NoWait, 150 * time.Millisecond} {
		t.Run(fmt.Sprint(wait), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1)
			var sent atomic.Int64 // in milliseconds
			took := make(chan time.Duration, 1)
			s, _ := consume(t, testkit.Config(group), ackpolicy.BatchConfig{Wait: wait}, topic,
				func(_ context.Context, _ []*message.Message, ds []*ackpolicy.Delivery) error {
					took <- time.Duration(time.Now().UnixMilli()-sent.Load()) * time.Millisecond
					return nil
				}, ackpolicy.NackOnError.Middleware)
			sent.Store(time.Now().UnixMilli())
			testkit.Produce(t, topic, 0, testkit.Numbered(1)...)
			if d := testkit.Await(t, "the batch", took); d < wait {
				t.Errorf("the only record waited for %v, want %v", d, wait)
			}
			s.Stop()
		})
	}
}

// The records of a key are in one batch, in order, and never in two at once; other keys' batches run beside it.
func TestConcurrentBatches(t *testing.T) {
	t.Parallel()
	const n, keys = 400, 10
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, keyed(n, keys)...)
	var mu sync.Mutex
	running := map[string]bool{}
	last := map[string]int64{}
	most, now := 0, 0
	both := make(chan struct{})
	s, _ := consume(t, testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 0)),
		ackpolicy.BatchConfig{Size: 5, Concurrency: 4, Wait: 20 * time.Millisecond}, topic,
		func(ctx context.Context, _ []*message.Message, ds []*ackpolicy.Delivery) error {
			mine := map[string]bool{}
			mu.Lock()
			if now++; now > most {
				if most = now; most == 2 {
					close(both)
				}
			}
			for _, d := range ds {
				key := string(d.Key())
				if running[key] && !mine[key] {
					t.Errorf("key %s is in two batches", key)
				}
				if before, ok := last[key]; ok && before >= d.Offset() {
					t.Errorf("key %s: %d after %d", key, d.Offset(), before)
				}
				mine[key], running[key], last[key] = true, true, d.Offset()
			}
			mu.Unlock()
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				now--
				for key := range mine {
					running[key] = false
				}
			}()
			return testkit.Until(ctx, both)
		}, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, n)
	s.Stop()
	if most < 2 || most > 4 {
		t.Errorf("%d batches at once", most)
	}
}

// A plain Subscribe loop has batches, too; msg.Ack and msg.Nack apply to all of its messages.
func TestBatchesInALoop(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(10)...)
	sub := testkit.NewSubscriber(t, testkit.Config(group), testkit.NewLog(t)).Batches(untilFull(10))
	batches, err := sub.Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	for attempt := 1; attempt <= 3; attempt++ {
		msg := testkit.Await(t, "a batch", batches)
		b, ok := ackpolicy.BatchFromMessage(msg)
		if !ok || len(b.Messages()) != 10 {
			t.Fatalf("batch %v, %v", b, ok)
		}
		for i, m := range b.Messages() {
			d, ok := ackpolicy.FromMessage(m)
			if !ok || d.Offset() != int64(i) || d.Attempt() != attempt || string(m.Payload) != fmt.Sprint(i) {
				t.Errorf("message %d: %s, attempt %d", i, m.Payload, d.Attempt())
			}
		}
		switch attempt {
		case 1:
			msg.Nack()
		case 2: // one fails
			b.Fail(9, testkit.ErrBoom)
			for i := range 9 {
				b.Leave(i)
			}
			msg.Ack()
			attempt = 1 // for those that were left it did not count
			msg = testkit.Await(t, "a batch", batches)
			b, _ = ackpolicy.BatchFromMessage(msg)
			for i, m := range b.Messages() {
				d, _ := ackpolicy.FromMessage(m)
				if want := map[bool]int{true: 3, false: 2}[i == 9]; d.Attempt() != want {
					t.Errorf("message %d: attempt %d, want %d", i, d.Attempt(), want)
				}
			}
			msg.Ack()
			attempt = 3
		}
	}
	testkit.WaitCommitted(t, group, topic, 0, 10)
}

// What is wrong with a BatchConfig is reported by Subscribe.
func TestBatchConfigIsValidated(t *testing.T) {
	t.Parallel()
	bad := ackpolicy.BatchConfig{Size: -1, Bytes: -1, Wait: -2, Concurrency: -1}
	sub, err := ackpolicy.NewSubscriber(testkit.Config(brokertest.Group(t)), watermill.NopLogger{})
	testkit.Check(t, err)
	_, err = sub.Batches(bad).Subscribe(context.Background(), "topic")
	if err == nil || !errors.Is(err, errors.Unwrap(err)) && err.Error() != bad.Validate().Error() {
		t.Errorf("Subscribe: %v, want %v", err, bad.Validate())
	}
	testkit.Check(t, sub.Close())
}
