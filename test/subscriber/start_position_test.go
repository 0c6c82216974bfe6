package subscriber_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A group with Initial=Newest and no stored offset stops before its first settlement, while a producer runs: the next
// members read on from where the first began.
func TestNewestLosesNothing(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		const partitions = 4
		group, topic := brokertest.Group(t), testkit.FilledTopic(t, partitions, 10) // before the group began: not for it
		stopProducer := produceThroughout(t, topic, partitions)
		cfg := testkit.Config(group, testkit.InitialOffset(sarama.OffsetNewest), rebalance, testkit.DrainTimeout(100*time.Millisecond))
		forget := func(*message.Message, *ackpolicy.Delivery) error { return nil } // under Manual
		stored := func() map[int32]int64 {
			all, err := brokertest.CommittedAll(testkit.Shared.Addrs(), group, topic)
			testkit.Check(t, err)
			return all
		}

		// Two members without a settlement, the second of which gets partitions by a rebalance.
		first := testkit.Consume(t, cfg, topic, forget, ackpolicy.Manual.Middleware)
		testkit.Eventually(t, "the start positions", func() bool { return len(stored()) == partitions })
		start := stored()
		second := testkit.Consume(t, cfg, topic, forget, ackpolicy.Manual.Middleware)
		delivered := func(members ...*testkit.Service) map[int32][]int64 {
			offsets := map[int32][]int64{}
			for _, m := range members {
				for _, d := range m.All() {
					offsets[d.Partition()] = append(offsets[d.Partition()], d.Offset())
				}
			}
			return offsets
		}
		testkit.Eventually(t, "a delivery of each partition to the first, and of some to the second", func() bool {
			return len(delivered(first)) == partitions && len(delivered(second)) >= partitions/2
		})
		for p, offsets := range delivered(first) {
			if offsets[0] != start[p] {
				t.Errorf("partition %d: began at %d, stored %d", p, offsets[0], start[p])
			}
		}
		first.Stop()
		second.Stop()
		for p, offset := range stored() {
			if offset != start[p] {
				t.Errorf("partition %d: stored %d, then %d without a settlement", p, start[p], offset)
			}
		}

		last := testkit.Consume(t, cfg, topic, forget, ackpolicy.NackOnError.Middleware)
		last.Wait(t, 1)
		stopProducer()
		for p := range int32(partitions) {
			end, err := brokertest.EndOffset(testkit.Shared.Addrs(), topic, p)
			testkit.Check(t, err)
			testkit.WaitCommitted(t, group, topic, p, end)
		}
		last.Stop()
		for p, offsets := range delivered(last) {
			if missing := gaps(offsets, start[p]); len(missing) > 0 {
				t.Errorf("partition %d: never delivered: %v", p, missing)
			}
		}
	})
}

// A stored offset outside of the log is reported and reset as configured; commits continue from there, even if that is
// lower.
func TestStoredOffsetOutsideTheLog(t *testing.T) {
	t.Parallel()
	const records, beyond = 5, 1000
	for name, c := range map[string]struct {
		initial, start int64
		trim           int64 // the log's start
		stored         int64
	}{
		"beyond the end, oldest":   {sarama.OffsetOldest, 0, 0, beyond},
		"beyond the end, newest":   {sarama.OffsetNewest, records, 0, beyond},
		"before the start, oldest": {sarama.OffsetOldest, 3, 3, 1},
		"before the start, newest": {sarama.OffsetNewest, records, 3, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(records)...)
			if c.trim > 0 {
				testkit.Check(t, brokertest.DeleteRecords(testkit.Shared.Addrs(), topic, 0, c.trim))
			}
			testkit.Check(t, brokertest.ResetOffset(testkit.Shared.Addrs(), group, topic, 0, c.stored))
			reported := make(chan ackpolicy.PositionResetEvent, 1)
			cfg := testkit.Config(group, testkit.InitialOffset(c.initial))
			cfg.Hooks.PositionReset = func(e ackpolicy.PositionResetEvent) { reported <- e }
			s := testkit.Consume(t, cfg, topic, testkit.Succeed,
				ackpolicy.NackOnError.Middleware)
			if e := testkit.Await(t, "the hook", reported); e.Stored != c.stored || e.Start != c.start || e.Topic != topic {
				t.Errorf("the hook got %+v", e)
			}
			if len(testkit.Containing(s.Log.At("error", "info"), topic, fmt.Sprint(c.stored), fmt.Sprint(c.start))) == 0 {
				t.Errorf("not in the log: %v", s.Log.At("error", "info"))
			}
			testkit.Produce(t, topic, 0, testkit.Numbered(2)...)
			s.Wait(t, records+2-int(c.start))
			testkit.Eventually(t, "the commit", func() bool {
				stored, err := brokertest.Committed(testkit.Shared.Addrs(), group, topic, 0)
				return err == nil && stored == records+2
			})
			s.Stop()
			if first := s.All()[0].Offset(); first != c.start {
				t.Errorf("began at %d, want %d", first, c.start)
			}
		})
	}
}

// gaps returns what is missing between the start and the highest offset.
func gaps(offsets []int64, start int64) (missing []int64) {
	for offset := start; offset <= slices.Max(offsets); offset++ {
		if !slices.Contains(offsets, offset) {
			missing = append(missing, offset)
		}
	}
	return missing
}

// produceThroughout writes to all partitions, one record after the other, until the function that it returns is called.
func produceThroughout(t *testing.T, topic string, partitions int32) (stop func()) {
	t.Helper()
	cfg := sarama.NewConfig()
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	cfg.Producer.Return.Successes = true
	producer, err := sarama.NewSyncProducer(testkit.Shared.Addrs(), cfg)
	testkit.Check(t, err)
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := int32(0); ; i++ {
			select {
			case <-stopped:
				return
			default:
			}
			_, _, err := producer.SendMessage(&sarama.ProducerMessage{
				Topic: topic, Partition: i % partitions, Value: sarama.StringEncoder(fmt.Sprint(i)),
			})
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(stopped)
		<-ended
		testkit.Check(t, producer.Close())
	})
	t.Cleanup(stop)
	return stop
}
