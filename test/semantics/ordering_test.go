package semantics_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Record 0 is nacked until all that may overtake it has done so, and a few times more.
func TestNackedRecordHoldsItsLaneOnly(t *testing.T) {
	t.Parallel()
	keys := []string{"a", "b", "a", "c", "b", "a", "d", "a"}
	for _, c := range []struct {
		ordering ackpolicy.Ordering
		overtake []int64
	}{
		{ackpolicy.OrderByPartition, nil},
		{ackpolicy.OrderByKey, []int64{1, 3, 4, 6}},
		{ackpolicy.Unordered, []int64{1, 2, 3, 4, 5, 6, 7}},
	} {
		t.Run(fmt.Sprint(c.ordering), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed(keys...)...)
			var overtook atomic.Int32
			s := testkit.Consume(t, testkit.Config(group, testkit.Ordering(c.ordering, 0)), topic,
				func(_ *message.Message, d *ackpolicy.Delivery) error {
					if d.Offset() > 0 {
						overtook.Add(1)
						return nil
					}
					if int(overtook.Load()) < len(c.overtake) || d.Attempt() < 4 {
						return testkit.ErrBoom
					}
					return nil
				}, ackpolicy.NackOnError.Middleware)
			testkit.WaitCommitted(t, group, topic, 0, int64(len(keys)))
			s.Stop()

			deliveries := s.All()
			last := slices.IndexFunc(deliveries, func(d *ackpolicy.Delivery) bool {
				return d.Offset() == 0 && d.Status() == ackpolicy.Acked
			})
			var before, after, order []int64
			for i, d := range deliveries {
				switch {
				case d.Offset() == 0:
				case i < last:
					before = append(before, d.Offset())
				default:
					after = append(after, d.Offset())
				}
				order = append(order, d.Offset())
			}
			slices.Sort(before)
			if !slices.Equal(before, c.overtake) {
				t.Errorf("overtook record 0: %v, want %v; all: %v", before, c.overtake, s.Names())
			}
			if c.ordering != ackpolicy.Unordered && !slices.IsSorted(after) {
				t.Errorf("out of order after it: %v", after)
			}
			for _, key := range slices.Compact(slices.Sorted(slices.Values(keys))) {
				ofKey := slices.DeleteFunc(slices.Clone(order), func(offset int64) bool { return keys[offset] != key })
				if c.ordering != ackpolicy.Unordered && !slices.IsSorted(ofKey) {
					t.Errorf("key %s out of order: %v", key, ofKey)
				}
			}
		})
	}
}

// One handler at a time for each key, many keys at once; records without a key are lanes of their own, an empty key is one.
func TestOneHandlerPerKey(t *testing.T) {
	t.Parallel()
	var records []brokertest.Record
	for i := range 4 {
		records = append(records,
			brokertest.KeyValue("a", fmt.Sprint(i)),
			brokertest.KeyValue("b", fmt.Sprint(i)),
			brokertest.KeyValue("", fmt.Sprint(i)),
			brokertest.Record{Value: fmt.Append(nil, i)})
	}
	lane := func(d *ackpolicy.Delivery) string {
		if d.Key() == nil {
			return fmt.Sprint("record ", d.Offset())
		}
		return fmt.Sprintf("key %q", d.Key())
	}
	const together = 3 + 4 // the first of a, of b and of the empty key, and all without one
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, records...)
	running := map[string]*atomic.Int32{}
	for i, r := range records {
		if name := fmt.Sprintf("key %q", r.Key); r.Key != nil {
			running[name] = &atomic.Int32{}
		} else {
			running[fmt.Sprint("record ", i)] = &atomic.Int32{}
		}
	}
	var started atomic.Int32
	met := make(chan struct{})
	s := testkit.Consume(t, testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 16)), topic,
		func(msg *message.Message, d *ackpolicy.Delivery) error {
			if n := running[lane(d)].Add(1); n > 1 {
				t.Errorf("%s: %d handlers at once", lane(d), n)
			}
			defer running[lane(d)].Add(-1)
			if started.Add(1) == together {
				close(met)
			}
			return testkit.Until(msg.Context(), met)
		}, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, int64(len(records)))
	s.Stop()
	if len(s.All()) != len(records) {
		t.Errorf("deliveries: %v", s.Names())
	}
}

// MaxInFlight bounds a partition's handlers, MaxInFlightTotal those of a subscription.
func TestMaxInFlight(t *testing.T) {
	t.Parallel()
	const partitions, records = 3, 30
	for name, c := range map[string]struct {
		ordering                           ackpolicy.Ordering
		inFlight, total, perPartition, all int
	}{
		"a partition each":    {ackpolicy.OrderByPartition, 0, 0, 1, partitions},
		"keys":                {ackpolicy.OrderByKey, 4, 0, 4, 4 * partitions},
		"unordered":           {ackpolicy.Unordered, 4, 0, 4, 4 * partitions},
		"total":               {ackpolicy.Unordered, 4, 5, 4, 5},
		"total by partition":  {ackpolicy.OrderByPartition, 0, 2, 1, 2},
		"total of one by key": {ackpolicy.OrderByKey, 8, 1, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, partitions)
			for p := range int32(partitions) {
				var values []brokertest.Record
				for i := range records {
					values = append(values, brokertest.KeyValue(fmt.Sprint(i), "x"))
				}
				testkit.Produce(t, topic, p, values...)
			}
			var all atomic.Int32
			var each [partitions]atomic.Int32
			reached := make(chan struct{}, partitions*records)
			cfg := testkit.Config(group, testkit.Ordering(c.ordering, c.inFlight))
			cfg.MaxInFlightTotal = c.total
			s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				n, total := each[d.Partition()].Add(1), all.Add(1)
				defer each[d.Partition()].Add(-1)
				defer all.Add(-1)
				if int(n) > c.perPartition || int(total) > c.all {
					t.Errorf("%d handlers in a partition, %d in all", n, total)
				}
				if int(total) >= c.all {
					reached <- struct{}{}
				}
				// Slow enough to meet the others, or else to continue alone.
				select {
				case <-reached:
					reached <- struct{}{}
				case <-time.After(50 * time.Millisecond):
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			for p := range int32(partitions) {
				testkit.WaitCommitted(t, group, topic, p, records)
			}
			s.Stop()
			if len(reached) == 0 {
				t.Errorf("never were %d handlers running at once", c.all)
			}
		})
	}
}
