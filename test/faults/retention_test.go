package faults_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Retention passes a consumer that is too slow: log and hook say what was lost, and the configured reset is
// honoured, with a group and without one.
func TestRetentionPassesTheConsumer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		group   bool
		initial int64
	}{
		"group, oldest":    {true, sarama.OffsetOldest},
		"group, newest":    {true, sarama.OffsetNewest},
		"no group, oldest": {false, sarama.OffsetOldest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Small fetches and a small window: the consumer is in the middle when the log's start passes it.
			const records, bound, trim = 400, 10, 390
			topic := testkit.NewTopic(t, 1)
			for i := 0; i < records; i += 20 { // batches that a fetch can distinguish
				testkit.Produce(t, topic, 0, testkit.Sized(20, 5_000)...)
			}
			group := ""
			if c.group {
				group = brokertest.Group(t)
			}
			cfg := testkit.Config(group, testkit.InitialOffset(c.initial), testkit.DrainTimeout(2*time.Second))
			if c.group && c.initial == sarama.OffsetNewest {
				testkit.Check(t, brokertest.ResetOffset(testkit.Shared.Addrs(), group, topic, 0, 0))
			}
			cfg.MaxUncommitted = bound
			cfg.Kafka.OverwriteSaramaConfig.Consumer.Fetch.Default = 100_000
			cfg.Kafka.OverwriteSaramaConfig.ChannelBufferSize = 0
			reported := make(chan ackpolicy.PositionResetEvent, 10)
			cfg.Hooks.PositionReset = func(e ackpolicy.PositionResetEvent) { reported <- e }
			release := make(chan struct{})
			var first atomic.Int64
			first.Store(-1)
			s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() >= trim {
					first.CompareAndSwap(-1, d.Offset())
				}
				if d.Offset() == 0 {
					return testkit.Until(msg.Context(), release)
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			s.Wait(t, 1)
			testkit.Check(t, brokertest.DeleteRecords(testkit.Shared.Addrs(), topic, 0, trim))
			close(release)
			start := int64(trim)
			if c.initial == sarama.OffsetNewest {
				start = records
			}
			e := testkit.Await(t, "the hook", reported)
			if e.Topic != topic || e.Start != start || e.Stored < 1 || e.Stored >= trim {
				t.Errorf("the hook got %+v, want a start of %d", e, start)
			}
			if len(testkit.Containing(s.Log.At("error"), "position reset", topic)) == 0 {
				t.Errorf("not in the log: %v", s.Log.At("error"))
			}
			testkit.Produce(t, topic, 0, testkit.Numbered(1)...)
			testkit.Eventually(t, "the last record", func() bool {
				all := s.All()
				return all[len(all)-1].Offset() == records
			})
			s.Stop()
			if first.Load() != start {
				t.Errorf("continued with %d, want %d", first.Load(), start)
			}
			handled := map[int64]bool{}
			for _, d := range s.All() {
				handled[d.Offset()] = true
			}
			for offset := range int64(records) {
				if lost := offset >= e.Stored && offset < e.Start; !handled[offset] && !lost {
					t.Errorf("record %d was not delivered, and is not in the range that was reported", offset)
				}
			}
		})
	}
}
