package testkit

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Flaky is a dead letter destination that fails while it is down.
type Flaky struct {
	Down  atomic.Bool
	Tried atomic.Int32
	Sent  atomic.Int32
}

// Send implements ackpolicy.DeadLetter.
func (f *Flaky) Send(context.Context, *sarama.ConsumerMessage, ackpolicy.Letter) error {
	f.Tried.Add(1)
	if f.Down.Load() {
		return errors.New("the dead letter topic is down")
	}
	f.Sent.Add(1)
	return nil
}

// ErrPoison is why tests reject records.
var ErrPoison = errors.New("poison")

// Letters reads everything that a dead letter topic's partition holds.
func Letters(t *testing.T, topic string, partition int32, n int) []*sarama.ConsumerMessage {
	t.Helper()
	return LettersOf(t, Shared, topic, partition, n)
}

// LettersOf is Letters on another broker.
func LettersOf(t *testing.T, broker *brokertest.Broker, topic string, partition int32, n int) []*sarama.ConsumerMessage {
	t.Helper()
	consumer, err := sarama.NewConsumer(broker.Addrs(), sarama.NewConfig())
	Check(t, err)
	defer consumer.Close()
	pc, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
	Check(t, err)
	defer pc.Close()
	var all []*sarama.ConsumerMessage
	for len(all) < n {
		all = append(all, Await(t, "a letter", pc.Messages()))
	}
	if end, err := brokertest.EndOffset(broker.Addrs(), topic, partition); err != nil || end != int64(n) {
		t.Errorf("%s/%d ends at %d (%v), want %d letters", topic, partition, end, err, n)
	}
	return all
}

// Headers returns a record's headers; those of one name are joined.
func Headers(r *sarama.ConsumerMessage) map[string]string {
	m := map[string]string{}
	for _, h := range r.Headers {
		m[string(h.Key)] += string(h.Value)
	}
	return m
}

// DeadLetterTopic has rejected records stored in a topic, which is created.
func DeadLetterTopic(c *ackpolicy.SubscriberConfig) {
	c.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}}
}

// RejectAll is a handler that rejects every record.
func RejectAll(*message.Message, *ackpolicy.Delivery) error { return ackpolicy.RejectWith(ErrPoison) }
