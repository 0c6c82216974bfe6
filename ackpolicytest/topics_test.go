package ackpolicytest_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
)

// A handler may read a list and a pattern. Topics that are created later are found, nacks, letters and positions are per
// topic, and a crash or a revocation in one topic leaves the others alone.
func TestSeveralTopics(t *testing.T) {
	began := time.Now()
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		letters := &ackpolicytest.Letters{}
		errPoison := errors.New("poison")
		k.CreateTopic("orders.eu", 1)
		k.CreateTopic("invoices", 2)
		run := func() *service {
			config := inGroup(func(c *ackpolicy.SubscriberConfig) { c.DeadLetter = letters })
			return startOn(t, k, "orders.*, invoices", config, func(msg *message.Message) error {
				switch d := delivery(msg); {
				case string(msg.Payload) == "poison":
					return ackpolicy.RejectWith(errPoison)
				case string(msg.Payload) == "late" && d.Attempt() == 1:
					return ackpolicy.NackAfter(time.Hour)
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
		}
		produce := func(topic, payload string) { k.Produce(topic, message.NewMessage("", []byte(payload))) }
		run()
		k.Advance(time.Second)
		produce("orders.eu", "late")
		produce("invoices", "poison")
		k.WaitSettled("shop", "invoices")
		letters.Want(t, "invoices", 0, 0, errPoison)
		k.Settlement("shop", "orders.eu", 0, 0).WantNacked(t, 1, time.Hour)

		k.CreateTopic("orders.us", 1)
		produce("orders.us", "one")
		k.Advance(11 * time.Minute) // see docs/topics.md
		k.Settlement("shop", "orders.us", 0, 0).WantAcked(t, 1)
		k.Settlement("shop", "orders.eu", 0, 0).WantNacked(t, 1, time.Hour)

		k.Revoke("shop", "invoices", 0)
		produce("orders.us", "two")
		k.WaitSettled("shop", "orders.us")
		k.Assign("shop", "invoices", 0)

		k.Crash()
		s := run()
		k.Advance(time.Hour)
		k.Settlement("shop", "orders.eu", 0, 0).WantAcked(t, 2)
		for _, topic := range []string{"orders.eu", "orders.us", "invoices"} {
			k.WaitSettled("shop", topic)
		}
		s.want(t, "0/0#2") // the other records are settled
		var ends []string
		for _, topic := range []string{"orders.eu", "orders.us", "invoices"} {
			ends = append(ends, fmt.Sprint(topic, k.Committed("shop", topic, 0)))
		}
		if want := []string{"orders.eu1", "orders.us2", "invoices1"}; !slices.Equal(ends, want) {
			t.Errorf("stored: %v, want %v", ends, want)
		}
	})
	t.Logf("took %v", time.Since(began))
}
