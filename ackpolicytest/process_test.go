package ackpolicytest_test

import (
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
)

// What was stored before the crash holds after it; what was not comes again.
func TestCrash(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		config := inGroup(func(c *ackpolicy.SubscriberConfig) { c.Ordering = ackpolicy.Unordered })
		h := func(msg *message.Message) error {
			if d := delivery(msg); d.Offset() == 0 && d.Attempt() == 1 {
				return ackpolicy.NackAfter(time.Hour)
			}
			return nil
		}
		before := start(t, k, config, h, ackpolicy.NackOnError.Middleware)
		k.Produce("orders", newMessage())
		k.Advance(0)
		k.Produce("orders", newMessage())
		k.Advance(10 * time.Second) // the nack and the ack behind it are stored
		k.Produce("orders", newMessage())
		k.Advance(0)
		before.want(t, "0/0#1", "0/1#1", "0/2#1")
		k.Crash()

		after := start(t, k, config, h, ackpolicy.NackOnError.Middleware)
		k.Advance(time.Minute)
		after.want(t, "0/2#1") // its ack was not stored
		k.WaitSettled("shop", "orders")
		after.want(t, "0/2#1", "0/0#2")
		k.Settlement("shop", "orders", 0, 0).WantAcked(t, 2)
		wantCommitted(t, k, 0, 3)
	})
}

// What a dead process still does counts for nothing.
func TestDeadProcess(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		kept := make(chan *ackpolicy.Delivery, 1)
		k.Produce("orders", newMessage())
		start(t, k, inGroup(), func(msg *message.Message) error {
			kept <- delivery(msg)
			return nil
		}, ackpolicy.Manual.Middleware)
		d := <-kept
		k.Crash()
		d.Ack()
		k.Advance(time.Minute)
		if s := k.Settlement("shop", "orders", 0, 0); s.Attempt != 0 {
			t.Error("got", s)
		}
		wantCommitted(t, k, 0, 0)
	})
}

// A partition that is taken away is drained first, and not read before it is given back.
func TestRevoke(t *testing.T) {
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		k.CreateTopic("orders", 2)
		s := start(t, k, inGroup(), func(msg *message.Message) error {
			d := delivery(msg)
			if d.Partition() == 0 && d.Offset() == 0 {
				<-d.Draining()
			}
			return nil
		}, ackpolicy.NackOnError.Middleware)
		produce := func(partition int32) {
			k.ProduceRecord(&sarama.ProducerMessage{Topic: "orders", Partition: partition, Value: sarama.StringEncoder("x")})
			k.Advance(time.Second)
		}
		produce(0)
		k.Revoke("shop", "orders", 0)
		k.Settlement("shop", "orders", 0, 0).WantAcked(t, 1)
		wantCommitted(t, k, 0, 1)
		produce(0)
		produce(1)
		s.want(t, "0/0#1", "1/0#1")
		k.Assign("shop", "orders", 0)
		k.WaitSettled("shop", "orders")
		s.want(t, "0/0#1", "1/0#1", "0/1#1")
	})
}
