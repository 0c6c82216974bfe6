package observe_test

import (
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// hourLate gives records the metadata of a delay of an hour.
func hourLate(records []brokertest.Record, late ...int) []brokertest.Record {
	msg := message.NewMessage("", nil)
	delay.Message(msg, delay.For(time.Hour))
	for _, i := range late {
		for key, value := range msg.Metadata {
			records[i].Headers = append(records[i].Headers, sarama.RecordHeader{Key: []byte(key), Value: []byte(value)})
		}
	}
	return records
}

// Records that wait for their first delivery are in State with the time. Retry delivers one at once, Reject gives one up.
func TestStateOfDelayedRecords(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, hourLate(testkit.Keyed("a", "b", "c", "a"), 0, 1)...)
	o := observe(t, testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 4)), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	var st ackpolicy.PartitionState
	testkit.Eventually(t, "the record that does not wait", func() bool {
		st, _ = o.partition(0)
		return st.Unsettled == 3 && st.Delayed == 2
	})
	old := st.Oldest
	if old.Offset != 0 || old.Status != ackpolicy.RecordDelayed || old.Attempt != 0 || string(old.Key) != "a" || time.Until(old.NextDelivery) < 50*time.Minute {
		t.Errorf("oldest: %+v", old)
	}
	if st.Nacked != 0 || st.Queued != 1 || st.InFlight != 0 || st.Watermark != 0 || st.WorkLag != 3 {
		t.Errorf("partition: %+v", st)
	}
	if records, sections, _ := o.Sub.Window(topic, 0, 10); len(records) != 3 || sections[0].Queued != 3 || sections[0].Settled != 1 {
		t.Errorf("window: %+v, %+v", records, sections)
	}
	if h := o.Sub.Health(); !h.Ready || !h.Live {
		t.Errorf("records that wait as they asked make it sick: %+v", h)
	}
	if lines := testkit.Containing(o.Log.At("info"), "Records are delivered later", "kafka_partition_offset=0"); len(lines) != 1 {
		t.Errorf("%d lines", len(lines))
	}
	testkit.Check(t, o.Sub.Retry("alice", topic, 0, 0))
	testkit.Check(t, o.Sub.Reject("alice", topic, 0, 1, "not needed"))
	testkit.WaitCommitted(t, group, topic, 0, 4)
	testkit.WantOnce(t, o.Service, "0#1", "2#1", "3#1")
}

// A record that waits and holds a full window is named like any other.
func TestBlockedBehindADelayedRecord(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, hourLate(testkit.Numbered(300), 0)...)
	cfg := testkit.Config(group)
	cfg.MaxUncommitted = 100
	blocked := make(chan ackpolicy.BlockedEvent, 1)
	cfg.Hooks.Blocked = func(e ackpolicy.BlockedEvent) { blocked <- e }
	o := observe(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	if e := testkit.Await(t, "the hook", blocked); e.Offset != 0 || e.Attempt != 0 || e.Bound != "MaxUncommitted" || e.State != "waiting for the time in its delay metadata" {
		t.Errorf("blocked: %+v", e)
	}
	testkit.Check(t, o.Sub.Retry("alice", topic, 0, 0))
	testkit.WaitCommitted(t, group, topic, 0, 300)
}
