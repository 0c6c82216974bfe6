package ackpolicy

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/kafkactx"
	"github.com/ackpolicy/watermill-ackpolicy/internal/write"
)

// DeadLetterPublisher publishes rejected records through a Watermill publisher: the
// payload as it came, and as metadata the headers of the record and the result of Headers.
// In the context of the published message, watermill-kafka's MessageKeyFromCtx and similar
// functions find the values of the record.
type DeadLetterPublisher struct {
	Publisher message.Publisher
	// Topic returns the name of the topic to publish to. nil appends ".dlq".
	Topic func(origin string) string
	// Headers returns the headers of a letter. nil means HeadersWatermill.
	Headers HeaderProfile
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
	msg.SetContext(&letterContext{ctx, origin{record, letter}})
	return p.Publisher.Publish(topicFor(p.Topic, letter.Topic), msg)
}

// letterContext has the values of the record for watermill-kafka's getters.
type letterContext struct {
	context.Context
	origin origin
}

func (c *letterContext) Value(key any) any {
	if value, ok := kafkactx.Value(c.origin, key); ok {
		return value
	}
	return c.Context.Value(key)
}

// origin implements kafkactx.Record.
type origin struct {
	record *sarama.ConsumerMessage
	letter Letter
}

func (o origin) Partition() int32     { return o.letter.Partition }
func (o origin) Offset() int64        { return o.letter.Offset }
func (o origin) Timestamp() time.Time { return o.letter.Timestamp }
func (o origin) Key() []byte          { return o.record.Key }

// letterPublisher is an opened DeadLetterPublisher. Kafka refuses whole batches, so the
// error of a letter may be due to another one. It counts only if the letter was sent alone.
type letterPublisher struct {
	DeadLetterPublisher
	room  chan struct{} // a token for each letter that is published; all of them for one that is sent alone
	alone chan struct{}
}

const (
	publishAtOnce = 16
	// alonePatience is how long a letter waits to be sent alone.
	alonePatience = 2 * time.Second
)

func newLetterPublisher(p DeadLetterPublisher) *letterPublisher {
	return &letterPublisher{p, make(chan struct{}, publishAtOnce), make(chan struct{}, 1)}
}

// Send implements DeadLetter.
func (p *letterPublisher) Send(ctx context.Context, record *sarama.ConsumerMessage, letter Letter) error {
	done, err := p.enter(ctx, 1)
	if err != nil {
		return err
	}
	err = func() error {
		defer done() // also if it panics
		return p.DeadLetterPublisher.Send(ctx, record, letter)
	}()
	if !refusedByKafka(err) {
		return err
	}
	waiting, cancel := context.WithTimeoutCause(ctx, alonePatience, err)
	defer cancel()
	select {
	case p.alone <- struct{}{}:
		defer func() { <-p.alone }()
	case <-waiting.Done():
		return context.Cause(waiting)
	}
	if done, err = p.enter(waiting, publishAtOnce); err != nil {
		return err
	}
	defer done()
	if err = p.DeadLetterPublisher.Send(ctx, record, letter); refusedByKafka(err) {
		return &write.Refused{Err: err}
	}
	return err
}

// enter takes n tokens. done returns them.
func (p *letterPublisher) enter(ctx context.Context, n int) (done func(), err error) {
	taken := 0
	done = func() {
		for range taken {
			<-p.room
		}
	}
	for ; taken < n; taken++ {
		select {
		case p.room <- struct{}{}:
		case <-ctx.Done():
			done()
			return nil, context.Cause(ctx)
		}
	}
	return done, nil
}

// refusedByKafka reports whether err says that sarama or the broker refuses the message
// for good.
func refusedByKafka(err error) bool {
	var config sarama.ConfigurationError
	return errors.Is(err, sarama.ErrMessageSizeTooLarge) || errors.Is(err, sarama.ErrMessageSetSizeTooLarge) ||
		errors.Is(err, sarama.ErrInvalidTimestamp) || errors.Is(err, sarama.ErrInvalidRecord) ||
		errors.Is(err, sarama.ErrUnsupportedForMessageFormat) || errors.Is(err, sarama.ErrPolicyViolation) ||
		is[sarama.PacketEncodingError](err) ||
		errors.As(err, &config) && strings.Contains(string(config), "MaxMessageBytes")
}
