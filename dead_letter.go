package ackpolicy

import (
	"context"
	"fmt"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
)

// DeadLetter stores rejected records somewhere else. Send returns nil once the
// letter is stored: only then may the record's offset be committed. While it
// fails, it is called again with backoff. It is called from one goroutine a
// partition; ctx ends when the partition is no longer ours.
type DeadLetter interface {
	Send(ctx context.Context, record *sarama.ConsumerMessage, letter Letter) error
}

// Letter says why a record was rejected.
type Letter struct {
	Topic      string // where the record is from
	Partition  int32
	Offset     int64
	Timestamp  time.Time // the record's
	Group      string
	Handler    string // its name in the Router; empty where no middleware of ours ran
	Subscriber string
	Reason     error // never nil
	Attempts   int   // how often it was delivered since it was assigned to us
	RejectedAt time.Time
}

// bury has a rejected record's letter stored.
func (s *subscription) bury(d *Delivery, reason error) {
	letter := Letter{
		Topic: d.Topic(), Partition: d.Partition(), Offset: d.Offset(), Timestamp: d.Timestamp(),
		Group:      s.sub.config.Kafka.ConsumerGroup,
		Subscriber: s.sub.String(),
		Reason:     sound(orNoReason(reason)),
		Attempts:   d.Attempt(),
		RejectedAt: time.Now(),
		Handler:    d.handler(),
	}
	dead := s.deadLetter
	d.kafka.Letter(func(ctx context.Context) (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("the DeadLetter panicked: %w", panicError(r))
			}
			s.tellBuried(BuriedEvent{letter.Topic, letter.Partition, letter.Offset, letter.Reason, err})
		}()
		record, err := d.kafka.Original(ctx, s.sub.config.Kafka.Tracer != nil)
		if err != nil {
			return err
		}
		defer d.kafka.Calls("DeadLetter.Send")()
		return dead.Send(ctx, record, letter)
	})
}

// DeadLetterPublisher publishes rejected records through any Watermill
// publisher: the payload as it came, the headers as metadata, and with them what
// Headers tells of the letter.
type DeadLetterPublisher struct {
	Publisher message.Publisher
	// Topic names the topic to publish to; nil is the record's with ".dlq" behind it.
	Topic func(origin string) string
	// Headers of a letter; nil is HeadersWatermill, as Watermill's own PoisonQueue has them.
	Headers func(Letter) []sarama.RecordHeader
}

// Send implements DeadLetter.
func (p DeadLetterPublisher) Send(ctx context.Context, record *sarama.ConsumerMessage, letter Letter) error {
	headers := p.Headers
	if headers == nil {
		headers = HeadersWatermill
	}
	msg, err := kafka.DefaultMarshaler{}.Unmarshal(record)
	if err != nil {
		return err
	}
	if msg.UUID == "" {
		msg.UUID = watermill.NewUUID()
	}
	for _, h := range headers(letter) {
		msg.Metadata.Set(string(h.Key), string(h.Value))
	}
	msg.SetContext(ctx)
	return p.Publisher.Publish(topicFor(p.Topic, letter.Topic), msg)
}

func topicFor(name func(string) string, origin string) string {
	if name != nil {
		return name(origin)
	}
	return origin + ".dlq"
}
