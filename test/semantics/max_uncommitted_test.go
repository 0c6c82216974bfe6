package semantics_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Without a group nothing is ever committed: MaxUncommitted must not count what is settled.
func TestGrouplessRunsPastMaxUncommitted(t *testing.T) {
	t.Parallel()
	const bound, records = 50, 500
	for _, o := range []ackpolicy.Ordering{ackpolicy.OrderByPartition, ackpolicy.OrderByKey, ackpolicy.Unordered} {
		t.Run(fmt.Sprint(o), func(t *testing.T) {
			t.Parallel()
			topic := testkit.NewTopic(t, 1, testkit.Numbered(records)...)
			cfg := testkit.Config("", testkit.Ordering(o, 0))
			cfg.MaxUncommitted = bound
			s := testkit.Consume(t, cfg, topic, testkit.Succeed,
				ackpolicy.NackOnError.Middleware)
			s.Wait(t, records)
			s.Stop()
		})
	}
}

// MaxUncommitted bounds what a crash replays: the records delivered past the one that holds the commit.
func TestMaxUncommitted(t *testing.T) {
	t.Parallel()
	const bound, records = 20, 100
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	var release atomic.Bool
	var stuck atomic.Pointer[ackpolicy.BlockedEvent]
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.Unordered, 4))
	cfg.MaxUncommitted = bound
	cfg.Hooks.Blocked = func(e ackpolicy.BlockedEvent) { stuck.Store(&e) }
	s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if release.Load() {
			d.Ack()
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	s.Wait(t, bound)
	testkit.Eventually(t, "the hook", func() bool { return stuck.Load() != nil })
	if e := stuck.Load(); e.Offset != 0 {
		t.Errorf("the hook got %+v", e)
	}
	for _, d := range s.All() {
		if d.Offset() >= bound {
			t.Errorf("%s was delivered while %d records are not settled", testkit.Name(d), bound)
		}
	}
	release.Store(true)
	for _, d := range s.All() {
		d.Ack()
	}
	testkit.WaitCommitted(t, group, topic, 0, records)
	testkit.Eventually(t, "a line that it continues", func() bool {
		return len(testkit.Containing(s.Log.At("info"), "Partition continues", topic, "kafka_partition=0", "failing_for=")) == 1
	})
	s.Stop()
}
