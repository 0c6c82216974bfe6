package memory_test

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

// Records that wait for their first delivery leave memory when it is short, do not stop those that wait for nothing, and
// are read again when they are due.
func TestDelayedRecordsLeaveMemory(t *testing.T) {
	t.Parallel()
	const late, prompt = 400, 100 // of 10 kB, where 1 MiB is allowed
	wait := 6 * time.Second
	msg := message.NewMessage("", nil)
	due := time.Now().Add(wait)
	delay.Message(msg, delay.For(wait))
	records := testkit.Sized(late+prompt, 10_000)
	for i := range records[:late] {
		for key, value := range msg.Metadata {
			records[i].Headers = append(records[i].Headers, sarama.RecordHeader{Key: []byte(key), Value: []byte(value)})
		}
	}
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, records...)
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 16))
	cfg.MaxBufferedBytes = testkit.MiB
	s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if early := time.Until(due); d.Offset() < late && early > 0 {
			t.Errorf("record %d came %v too early", d.Offset(), early)
		}
		if len(msg.Payload) != 10_000 {
			t.Errorf("record %d has %d bytes", d.Offset(), len(msg.Payload))
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.Wait(t, prompt)
	if time.Now().After(due) {
		t.Error("those that do not wait came only when the others were due")
	}
	testkit.WaitCommitted(t, group, topic, 0, late+prompt)
	if n := len(s.All()); n != late+prompt {
		t.Errorf("%d deliveries", n)
	}
}
