package observe_test

import (
	"testing"

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
