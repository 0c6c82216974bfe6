package observe_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// What holds a partition is rejected by hand, with one letter, and the rest continues: nothing is
// revoked, and nothing else is delivered again.
func TestRejectTheRecordThatHoldsAPartition(t *testing.T) {
	t.Parallel()
	for name, order := range map[string]testkit.Option{
		"by partition": testkit.Ordering(ackpolicy.OrderByPartition, 1), "by key": testkit.Ordering(ackpolicy.OrderByKey, 4),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "a", "b", "a")...)
			cfg := testkit.Config(group, order, backoff(time.Hour), testkit.DeadLetterTopic)
			assigned := make(chan ackpolicy.AssignedEvent, 10)
			cfg.Hooks.Assigned = func(e ackpolicy.AssignedEvent) { assigned <- e }
			o := observe(t, cfg, topic, failing(testkit.ErrBoom, make(chan struct{})), ackpolicy.NackOnError.Middleware)
			o.oldest(t, ackpolicy.RecordParked, 1)
			testkit.Check(t, o.Sub.Reject("alice", topic, 0, 0, "customer is gone"))
			testkit.WaitCommitted(t, group, topic, 0, 4)
			testkit.WantOnce(t, o.Service, "0#1", "1#1", "2#1", "3#1")
			letter := testkit.Headers(testkit.Letters(t, topic+".dlq", 0, 1)[0])
			found := false
			for _, value := range letter {
				found = found || strings.Contains(value, "rejected by hand, by alice: customer is gone")
			}
			if !found {
				t.Errorf("no reason in the letter: %v", letter)
			}
			if n := len(assigned); n != 1 {
				t.Errorf("assigned %d times", n)
			}
			if err := o.Sub.Reject("alice", topic, 0, 0, "again"); err == nil || !strings.Contains(err.Error(), "settled") {
				t.Errorf("rejected twice: %v", err)
			}
		})
	}
}

// A record whose handler hangs is settled at once; its key continues when the handler returns.
func TestRejectUnderAHangingHandler(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "a", "b")...)
	release := make(chan struct{})
	o := observe(t, testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 4), testkit.DeadLetterTopic), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return testkit.Until(msg.Context(), release)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	o.oldest(t, ackpolicy.RecordInFlight, 1)
	testkit.Check(t, o.Sub.Reject("alice", topic, 0, 0, "it hangs"))
	testkit.WaitCommitted(t, group, topic, 0, 1)
	testkit.Letters(t, topic+".dlq", 0, 1)
	close(release)
	testkit.WaitCommitted(t, group, topic, 0, 3)
	testkit.WantOnce(t, o.Service, "0#1", "1#1", "2#1")
}

// A record that waits behind others is given up when its turn comes.
func TestRejectAQueuedRecord(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "a", "a")...)
	release := make(chan struct{})
	o := observe(t, testkit.Config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		return testkit.Until(msg.Context(), release)
	}, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "all records", func() bool {
		st, _ := o.partition(0)
		return st.Unsettled == 3 && st.InFlight == 1
	})
	testkit.Check(t, o.Sub.Reject("alice", topic, 0, 1, "not this one"))
	if records, _, _ := o.Sub.Window(topic, 0, 10); len(records) != 3 || !errors.Is(records[1].Rejected, ackpolicy.ErrByHand) {
		t.Errorf("window: %+v", records)
	}
	close(release)
	testkit.WaitCommitted(t, group, topic, 0, 3)
	testkit.WantOnce(t, o.Service, "0#1", "2#1")
}

// Nothing is done to what is not there, and the error says why.
func TestActingInVain(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	release := make(chan struct{})
	o := observe(t, testkit.Config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return nil
		}
		return testkit.Until(msg.Context(), release)
	}, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "record 1", func() bool {
		st, _ := o.partition(0)
		return st.Watermark == 1 && st.InFlight == 1
	})
	for what, of := range map[string]struct {
		err  error
		want string
	}{
		"a settled record":           {o.Sub.Retry("a", topic, 0, 0), "offset 0 is settled"},
		"one that is not there yet":  {o.Sub.Reject("a", topic, 0, 7, ""), "not fetched yet"},
		"one with its handler":       {o.Sub.Retry("a", topic, 0, 1), "with its handler"},
		"another's partition":        {o.Sub.Reject("a", topic, 9, 1, ""), "not assigned"},
		"a topic without subscriber": {o.Sub.Pause("a", "other"), "no subscription"},
	} {
		if of.err == nil || !strings.Contains(of.err.Error(), of.want) {
			t.Errorf("%s: %v, want %q", what, of.err, of.want)
		}
	}
	if !errors.Is(o.Sub.Retry("a", topic, 9, 1), ackpolicy.ErrNotAssigned) {
		t.Error("not ErrNotAssigned")
	}
	close(release)
	testkit.WaitCommitted(t, group, topic, 0, 2)
}

// A paused partition hands nothing out, its sibling continues, and Resume continues it: there is
// no rebalance.
func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 2)
	cfg := testkit.Config(group)
	revoked := make(chan ackpolicy.RevokedEvent, 10)
	cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { revoked <- e }
	o := observe(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "the assignment", func() bool {
		_, one := o.partition(0)
		_, two := o.partition(1)
		return one && two
	})
	testkit.Check(t, o.Sub.Pause("alice", topic, 0))
	testkit.Produce(t, topic, 0, testkit.Numbered(5)...)
	testkit.Produce(t, topic, 1, testkit.Numbered(5)...)
	testkit.WaitCommitted(t, group, topic, 1, 5)
	st, _ := o.partition(0)
	if !st.Held || len(st.Paused) != 1 || st.Paused[0] != "paused by hand" || st.InFlight != 0 || st.Watermark != 0 {
		t.Errorf("paused: %+v", st)
	}
	if h := o.Sub.Health(); !h.Ready {
		t.Errorf("a deliberate pause makes it sick: %+v", h)
	}
	if n := len(o.Journal.All()); n != 5 {
		t.Errorf("%d deliveries under a pause, want those of the other partition", n)
	}
	testkit.Check(t, o.Sub.Resume("alice", topic, 0))
	testkit.WaitCommitted(t, group, topic, 0, 5)

	testkit.Check(t, o.Sub.Pause("alice", topic))
	testkit.Produce(t, topic, 0, testkit.Numbered(1)...)
	if st, _ := o.partition(1); !st.Held {
		t.Errorf("paused with its topic: %+v", st)
	}
	testkit.Check(t, o.Sub.Resume("alice", topic))
	testkit.WaitCommitted(t, group, topic, 0, 6)
	if n := len(revoked); n > 0 {
		t.Errorf("%d partitions were revoked", n)
	}
	if n := len(testkit.Containing(o.Log.At("info"), "Subscription changed by hand", "by=alice")); n != 4 {
		t.Errorf("%d lines", n)
	}
}

// A record that cannot be decoded, and is kept, is in State with its error; rejected by hand, it is
// not counted with later ones.
func TestRejectAnUndecodableRecord(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, brokertest.Values("bad", "good")...)
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.Unordered, 2), testkit.DeadLetterTopic)
	cfg.Kafka.Unmarshaler = testkit.BadValues{}
	cfg.OnUndecodable = ackpolicy.UndecodableRetry
	o := observe(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "the error", func() bool {
		st, _ := o.partition(0)
		return st.Oldest != nil && st.Oldest.Offset == 0 && st.Oldest.LastErr != nil
	})
	testkit.Check(t, o.Sub.Reject("alice", topic, 0, 0, "nonsense"))
	testkit.WaitCommitted(t, group, topic, 0, 2)
	testkit.Letters(t, topic+".dlq", 0, 1)
	testkit.Produce(t, topic, 0, brokertest.Values("bad")...)
	var lines []string
	testkit.Eventually(t, "the line", func() bool {
		lines = testkit.Containing(o.Log.At("error"), "cannot be decoded", "kafka_partition_offset=2 ")
		return len(lines) == 1
	})
	if strings.Contains(lines[0], "others=") {
		t.Error(lines[0])
	}
}
