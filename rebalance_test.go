package ackpolicy_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Settling after a revocation answers false and commits nothing over the new owner's offset.
func TestLateSettlementAfterRevocation(t *testing.T) {
	t.Parallel()
	for protocol, rebalance := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			const partitions, records = 2, 3
			group, topic := brokertest.Group(t), filledTopic(t, partitions, records)
			nothing := func(*message.Message, *ackpolicy.Delivery) error { return nil }
			old := consume(t, config(group, rebalance), topic, nothing, ackpolicy.Manual.Middleware)
			old.journal.wait(t, partitions*records) // all pending
			pending := old.journal.all()

			successor := consume(t, config(group, rebalance), topic, nothing, ackpolicy.Ack.Middleware)
			moved := successor.journal.wait(t, records).Partition()
			waitCommitted(t, group, topic, moved, records)
			for _, d := range pending {
				if d.Partition() != moved {
					continue
				}
				if d.Ack() || d.Nack() || d.Reject(nil) || d.AckCumulative() || d.Status() != ackpolicy.Revoked {
					t.Errorf("%s settled after its partition was revoked: %v", name(d), d.Status())
				}
				if err := d.AckSync(context.Background()); !errors.Is(err, ackpolicy.ErrRevoked) {
					t.Errorf("AckSync: %v", err)
				}
			}

			// What stayed, or came back, is settled: its commit leaves the other one alone.
			kept := 1 - moved
			eventually(t, "the offset of the partition that stayed", func() bool {
				for _, d := range old.journal.all() {
					if d.Partition() == kept {
						d.Ack()
					}
				}
				stored, err := brokertest.Committed(shared.Addrs(), group, topic, kept)
				return err == nil && stored == records
			})
			wantCommitted(t, group, topic, moved, records)
			old.stop()
			successor.stop()
			wantCommitted(t, group, topic, moved, records)
			wantCommitted(t, group, topic, kept, records)
			if n := len(successor.journal.all()); n != records {
				t.Errorf("the successor had %d deliveries: %v", n, successor.journal.names())
			}
		})
	}
}

// A revocation lets running handlers finish and commits what they settle: the new owner does not get it again. One that
// takes too long has its context cancelled.
func TestRevocationDrains(t *testing.T) {
	t.Parallel()
	for protocol, rebalance := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			const partitions = 2
			group, topic := brokertest.Group(t), filledTopic(t, partitions, 1)
			old := consume(t, config(group, rebalance), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				return until(msg.Context(), d.Draining())
			}, ackpolicy.NackOnError.Middleware)
			old.journal.wait(t, partitions)
			successor := consume(t, config(group, rebalance), topic,
				func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
			awaitTwo(t, shared, group)
			for p := range int32(partitions) {
				produce(t, topic, p, numbered(2)[1:]...)
			}
			successor.journal.wait(t, 1)
			old.stop()
			for p := range int32(partitions) {
				waitCommitted(t, group, topic, p, 2)
			}
			successor.stop()
			seen := map[string]int{}
			for _, d := range append(old.journal.all(), successor.journal.all()...) {
				seen[fmt.Sprintf("%d/%d", d.Partition(), d.Offset())]++
			}
			for record, n := range seen {
				if n > 1 {
					t.Errorf("%s was delivered %d times", record, n)
				}
			}
		})
	}
}

func TestRevocationCancelsWithItsCause(t *testing.T) {
	t.Parallel()
	for protocol, rebalance := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			const partitions = 2
			group, topic := brokertest.Group(t), filledTopic(t, partitions, 1)
			causes := make(chan error, 2*partitions)
			cfg := config(group, rebalance, drainTimeout(300*time.Millisecond))
			old := consume(t, cfg, topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
				<-msg.Context().Done()
				causes <- context.Cause(msg.Context())
				return msg.Context().Err()
			}, ackpolicy.NackOnError.Middleware)
			old.journal.wait(t, partitions)
			successor := consume(t, config(group, rebalance), topic,
				func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
			if cause := await(t, "the end of a context", causes); !errors.Is(cause, ackpolicy.ErrRevoked) {
				t.Errorf("cause: %v", cause)
			}
			d := successor.journal.wait(t, 1)
			waitCommitted(t, group, topic, d.Partition(), 1)
			old.stop()
			successor.stop()
		})
	}
}

// A group with Initial=Newest and no stored offset stops before its first settlement, while a producer runs: the next
// members read on from where the first began.
func TestNewestLosesNothing(t *testing.T) {
	t.Parallel()
	for protocol, rebalance := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			const partitions = 4
			group, topic := brokertest.Group(t), filledTopic(t, partitions, 10) // before the group began: not for it
			stopProducer := produceThroughout(t, topic, partitions)
			cfg := config(group, initial(sarama.OffsetNewest), rebalance, drainTimeout(100*time.Millisecond))
			forget := func(*message.Message, *ackpolicy.Delivery) error { return nil } // under Manual
			stored := func() map[int32]int64 {
				all, err := brokertest.CommittedAll(shared.Addrs(), group, topic)
				check(t, err)
				return all
			}

			// Two members without a settlement, the second of which gets partitions by a rebalance.
			first := consume(t, cfg, topic, forget, ackpolicy.Manual.Middleware)
			eventually(t, "the start positions", func() bool { return len(stored()) == partitions })
			start := stored()
			second := consume(t, cfg, topic, forget, ackpolicy.Manual.Middleware)
			delivered := func(members ...*service) map[int32][]int64 {
				offsets := map[int32][]int64{}
				for _, m := range members {
					for _, d := range m.journal.all() {
						offsets[d.Partition()] = append(offsets[d.Partition()], d.Offset())
					}
				}
				return offsets
			}
			eventually(t, "a delivery of each partition to the first, and of some to the second", func() bool {
				return len(delivered(first)) == partitions && len(delivered(second)) >= partitions/2
			})
			for p, offsets := range delivered(first) {
				if offsets[0] != start[p] {
					t.Errorf("partition %d: began at %d, stored %d", p, offsets[0], start[p])
				}
			}
			first.stop()
			second.stop()
			for p, offset := range stored() {
				if offset != start[p] {
					t.Errorf("partition %d: stored %d, then %d without a settlement", p, start[p], offset)
				}
			}

			last := consume(t, cfg, topic, forget, ackpolicy.NackOnError.Middleware)
			last.journal.wait(t, 1)
			stopProducer()
			for p := range int32(partitions) {
				end, err := brokertest.EndOffset(shared.Addrs(), topic, p)
				check(t, err)
				waitCommitted(t, group, topic, p, end)
			}
			last.stop()
			for p, offsets := range delivered(last) {
				if missing := gaps(offsets, start[p]); len(missing) > 0 {
					t.Errorf("partition %d: never delivered: %v", p, missing)
				}
			}
		})
	}
}

// gaps answers what is missing between the start and the highest offset.
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
	producer, err := sarama.NewSyncProducer(shared.Addrs(), cfg)
	check(t, err)
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
		check(t, producer.Close())
	})
	t.Cleanup(stop)
	return stop
}
