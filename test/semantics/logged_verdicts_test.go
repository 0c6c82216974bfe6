package semantics_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A reject is logged with what is needed to find the record.
func TestRejectIsLogged(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			return ackpolicy.RejectWith(testkit.ErrBoom)
		}
		return nil
	}, ackpolicy.Ack.Middleware)
	s.Wait(t, 3)
	s.Stop()
	logged := s.Log.At("error")
	if len(logged) != 1 || len(testkit.Containing(logged, topic, "partition=0", "offset=1", testkit.ErrBoom.Error())) != 1 {
		t.Errorf("want topic, partition, offset and reason in one line, got:\n%s", strings.Join(logged, "\n"))
	}
}

// Each nack has a debug line that says which record it was, why, and when it comes again.
func TestNackIsLogged(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.Unordered, 1)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		switch {
		case d.Attempt() > 1:
			return nil
		case d.Offset() == 0:
			return testkit.ErrBoom
		case d.Offset() == 1:
			return ackpolicy.NackAfter(90*time.Minute + 30*time.Second)
		}
		d.Nack()
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 5)
	s.Stop()
	lines := testkit.Containing(s.Log.At("debug"), "Record nacked")
	if len(lines) != 3 {
		t.Errorf("%d lines", len(lines))
	}
	for _, words := range [][]string{
		{topic, "kafka_partition=0", "kafka_partition_offset=0", "attempt=1", "err=boom", "retry_in="},
		{"kafka_partition_offset=1", "attempt=1", "retry_in=1h30m"},
		{"kafka_partition_offset=2", "attempt=1", "retry_in="},
	} {
		if len(testkit.Containing(lines, words...)) != 1 {
			t.Errorf("no line with %q in\n%s", words, strings.Join(lines, "\n"))
		}
	}
}
