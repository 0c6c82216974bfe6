package observe_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A record that is rejected by hand does not reach the application if nobody has taken its message yet.
func TestRejectBeforeTheMessageIsTaken(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	sub := testkit.NewSubscriber(t, testkit.Config(group), testkit.NewLog(t))
	messages, err := sub.Subscribe(t.Context(), topic)
	testkit.Check(t, err)
	offered := func(offset int64) {
		t.Helper()
		testkit.Eventually(t, "the record to be offered", func() bool {
			st := sub.State().Subscriptions[0].Partitions
			return len(st) == 1 && st[0].InFlight == 1 && st[0].Oldest.Offset == offset
		})
	}
	for offset := range int64(2) {
		offered(offset)
		testkit.Check(t, sub.Reject("alice", topic, 0, offset, "not needed"))
	}
	offered(2)
	msg := testkit.Await(t, "the third message", messages)
	if d, _ := ackpolicy.FromMessage(msg); d.Offset() != 2 || d.Status() != ackpolicy.Pending {
		t.Errorf("offset %d, %v", d.Offset(), d.Status())
	}
	msg.Ack()
	testkit.WaitCommitted(t, group, topic, 0, 3)
}

// What was rejected by hand and waits for its turn is not delivered by the next owner, either.
func TestRejectOverARestart(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "a", "a")...)
	fixed := make(chan struct{})
	rejected := make(chan ackpolicy.SettledEvent, 3)
	cfg := testkit.Config(group, backoff(time.Hour))
	cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
		if e.Status == ackpolicy.Rejected {
			rejected <- e
		}
	}
	first := observe(t, cfg, topic, failing(testkit.ErrBoom, fixed), ackpolicy.NackOnError.Middleware)
	first.oldest(t, ackpolicy.RecordParked, 1)
	testkit.Eventually(t, "the others", func() bool { st, _ := first.partition(0); return st.Queued == 2 })
	testkit.Check(t, first.Sub.Reject("alice", topic, 0, 1, "not this one"))
	first.Stop()
	next := observe(t, cfg, topic, failing(testkit.ErrBoom, fixed), ackpolicy.NackOnError.Middleware)
	if st := next.oldest(t, ackpolicy.RecordParked, 1); st.Oldest.LastErr == nil || st.Oldest.LastErr.Error() != testkit.ErrBoom.Error() {
		t.Errorf("the error of the earlier owner: %+v", st.Oldest)
	}
	close(fixed)
	testkit.Check(t, next.Sub.Retry("alice", topic, 0, 0))
	testkit.WaitCommitted(t, group, topic, 0, 3)
	next.Want(t, "0#2", "2#1")
	if e := testkit.Await(t, "the reject", rejected); e.Offset != 1 || !errors.Is(e.Reason, ackpolicy.ErrByHand) || !strings.Contains(e.Reason.Error(), "by alice: not this one") {
		t.Errorf("rejected: %+v", e)
	}
}
