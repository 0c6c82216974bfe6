package observe_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A record whose dead letter cannot be stored is the one that State names, with why it was rejected.
func TestStateOfALetterThatIsNotStored(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "a")...)
	letters := &testkit.Flaky{}
	letters.Down.Store(true)
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 4))
	cfg.DeadLetter = letters
	o := observe(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return ackpolicy.RejectWith(testkit.ErrPoison)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	o.oldest(t, ackpolicy.RecordRejecting, 1)
	testkit.Eventually(t, "the others", func() bool {
		st, _ := o.partition(0)
		return st.Unsettled == 1
	})
	if st, _ := o.partition(0); st.Letters != 1 || !errors.Is(st.Oldest.LastErr, testkit.ErrPoison) || st.Watermark != 0 {
		t.Errorf("state: %+v", st)
	}
	letters.Down.Store(false)
	testkit.WaitCommitted(t, group, topic, 0, 3)
}

// MaxUncommitted that is reached is a problem, which names the record that everything waits for.
func TestHealthAtMaxUncommitted(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.OwnKeys(0, 10)...)
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 4), testkit.CommitOnDemand, backoff(time.Hour))
	cfg.Kafka.ConsumerGroup, cfg.MaxUncommitted = "", 5 // without commits the bound counts from the watermark
	fixed := make(chan struct{})
	o := observe(t, cfg, topic, failing(testkit.ErrBoom, fixed), ackpolicy.NackOnError.Middleware)
	var h ackpolicy.Health
	testkit.Eventually(t, "not to be ready", func() bool {
		h = o.Sub.Health()
		return !h.Ready && len(h.Problems) > 0 && h.Problems[0].Code == ackpolicy.ProblemBlocked
	})
	if p := h.Problems[0]; p.Topic != topic || p.Partition != 0 || p.Offset != 0 || p.Attempt != 1 || p.Err != testkit.ErrBoom.Error() || !h.Live {
		t.Errorf("health: %+v", h)
	}
	if st, _ := o.partition(0); !st.Blocked || st.Queued != 5 || st.Nacked != 1 {
		t.Errorf("state: %+v", st)
	}
	close(fixed)
	testkit.Check(t, o.Sub.Retry("alice", topic, 0, 0))
	testkit.Eventually(t, "all records", func() bool { return len(o.Journal.All()) == 11 && o.Sub.Health().Ready })
}

// One live record is skipped, and a partition paused, amid thousands of others: nothing else is delivered
// again, nothing is lost, and nothing is revoked.
func TestActingUnderLoad(t *testing.T) {
	t.Parallel()
	const keys = 50
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 2)
	letters := &testkit.Flaky{}
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 16), backoff(time.Hour))
	cfg.DeadLetter = letters
	var revoked atomic.Int32
	cfg.Hooks.Revoked = func(ackpolicy.RevokedEvent) { revoked.Add(1) }
	o := observe(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Partition() == 0 && d.Offset() == 500 {
			return testkit.ErrBoom
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	producer := testkit.StartProducer(t, topic, 2, 4000, keys)
	testkit.Eventually(t, "the record that is nacked", func() bool {
		st, ok := o.partition(0)
		return ok && st.Oldest != nil && st.Oldest.Offset == 500 && st.Next > 1500
	})
	began := time.Now()
	testkit.Check(t, o.Sub.Reject("alice", topic, 0, 500, "it holds the partition"))
	testkit.Eventually(t, "the watermark to pass it", func() bool {
		st, _ := o.partition(0)
		return st.Watermark > 500
	})
	t.Logf("a live record is skipped in %v", time.Since(began))

	testkit.Check(t, o.Sub.Pause("alice", topic, 1))
	paused, _ := o.partition(1)
	other, _ := o.partition(0)
	testkit.Eventually(t, "the other partition to continue", func() bool {
		st, _ := o.partition(0)
		return st.Watermark > other.Watermark+2000
	})
	if st, _ := o.partition(1); st.Watermark > paused.Watermark+int64(paused.InFlight)+keys {
		t.Errorf("the paused partition continued from %d to %d", paused.Watermark, st.Watermark)
	}
	testkit.Check(t, o.Sub.Resume("alice", topic, 1))
	for p, end := range producer.Finish(t) {
		testkit.WaitCommitted(t, group, topic, int32(p), end)
	}
	if n := revoked.Load(); n > 0 {
		t.Errorf("%d partitions were revoked", n)
	}
	if n := letters.Sent.Load(); n != 1 {
		t.Errorf("%d letters", n)
	}
	times := map[[2]int64]int{}
	for _, d := range o.Journal.All() {
		times[[2]int64{int64(d.Partition()), d.Offset()}]++
	}
	for at, n := range times {
		if n != 1 {
			t.Errorf("partition %d, offset %d: delivered %d times", at[0], at[1], n)
		}
	}
}

// Under ConfirmFirst a record waits for its commit, and no handler of it is slow: Health names what fails. Once the commit
// is confirmed, the handler has just begun.
func TestWaitForAConfirmationIsNoSlowHandler(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(1)...)
	refused := testkit.RefuseCommits(broker, -1)
	cfg := testkit.Config(brokertest.Group(t), at)
	cfg.HandlerSlow = 300 * time.Millisecond
	began, release := make(chan struct{}), make(chan struct{})
	o := observe(t, cfg, topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
		close(began)
		return testkit.Until(msg.Context(), release)
	}, testkit.ConfirmFirst)
	waiting := o.oldest(t, ackpolicy.RecordConfirming, 1)
	testkit.Eventually(t, "the record to wait for longer than HandlerSlow, and the failing commit", func() bool {
		return time.Since(waiting.Oldest.Since) > 3*cfg.HandlerSlow && len(o.Sub.Health().Problems) > 0
	})
	if st, _ := o.partition(0); st.Slow != nil || st.Oldest.Status != ackpolicy.RecordConfirming {
		t.Errorf("state: %+v", st)
	}
	for _, p := range o.Sub.Health().Problems {
		if p.Code != ackpolicy.ProblemKafka {
			t.Errorf("problem: %+v", p)
		}
	}
	refused.Remove()
	testkit.Await(t, "the handler", began)
	testkit.Eventually(t, "the handler to be slow", func() bool {
		st, _ := o.partition(0)
		return st.Slow != nil && st.Slow.Status == ackpolicy.RecordSettled && st.Slow.Since.After(waiting.Oldest.Since.Add(2*cfg.HandlerSlow))
	})
	close(release)
}
