package observe_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A record that holds its partition and fails each time has a line after its fifth delivery, which names it and repeats
// rarely, and one when that is over. One that succeeds at the fifth has none.
func TestFailingRecordIsTold(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		cfg := k.Config(testkit.Config("shop", testkit.Ordering(ackpolicy.OrderByKey, 4)))
		cfg.Backoff = func(int, error) time.Duration { return 2 * time.Second }
		s := testkit.NewConsumer(t, cfg, "orders", func(_ *message.Message, d *ackpolicy.Delivery) error {
			switch {
			case d.Offset() == 0 && d.Attempt() < 5, d.Offset() == 1:
				return testkit.ErrBoom
			}
			return nil
		}, ackpolicy.NackOnError.Middleware)
		k.Start(s.Router)
		told := func(offset string) int {
			return len(testkit.Containing(s.Log.At("error"), "its deliveries fail", "err=boom", "handler_name=handler", "kafka_partition_offset="+offset+" "))
		}
		over := func() int { return len(testkit.Containing(s.Log.At("info"), "no longer hold a partition")) }
		k.Produce("orders", message.NewMessage("0", nil))
		k.Advance(15 * time.Second)
		if told("0") != 0 || over() != 0 {
			t.Error("told of a record that succeeded at its fifth delivery")
		}
		k.Produce("orders", message.NewMessage("1", nil), message.NewMessage("2", nil))
		k.Advance(7 * time.Second)
		if told("1") != 0 {
			t.Error("told after four deliveries")
		}
		k.Advance(3 * time.Second)
		if told("1") != 1 {
			t.Errorf("%d lines after the fifth delivery", told("1"))
		}
		k.Advance(10 * time.Minute)
		if n := told("1"); n < 3 || n > 6 {
			t.Errorf("%d lines after ten minutes", n)
		}
		if over() != 0 {
			t.Error("over before it is settled")
		}
		testkit.Check(t, s.Sub.Reject("alice", "orders", 0, 1, "unknown currency"))
		k.Advance(2 * time.Second)
		if over() != 1 {
			t.Errorf("%d lines that it is over", over())
		}
	})
}

// After a restart the line comes before the record's next delivery, and does not name a handler that is not known yet.
func TestFailingRecordIsToldAfterARestart(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		cfg := k.Config(testkit.Config("shop"))
		cfg.Backoff = func(attempt int, _ error) time.Duration {
			if attempt < 5 {
				return time.Second
			}
			return time.Hour
		}
		lines := func(wait time.Duration) []string {
			s := testkit.NewConsumer(t, cfg, "orders", func(*message.Message, *ackpolicy.Delivery) error { return testkit.ErrBoom }, ackpolicy.NackOnError.Middleware)
			k.Start(s.Router)
			k.Advance(wait)
			testkit.Check(t, s.Router.Close())
			return testkit.Containing(s.Log.At("error"), "its deliveries fail", "attempt=5 ")
		}
		k.Produce("orders", message.NewMessage("0", nil))
		if n := len(lines(10 * time.Second)); n != 1 {
			t.Fatalf("%d lines", n)
		}
		if again := lines(time.Second); len(again) != 1 || len(testkit.Containing(again, "handler_name")) != 0 {
			t.Errorf("after the restart: %q", again)
		}
	})
}
