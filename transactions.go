package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/transact"
	"github.com/ackpolicy/watermill-ackpolicy/internal/write"
)

// Transactions makes what handlers publish through Subscriber.Publisher appear exactly once.
// It is held until its record is settled, and then written in one Kafka transaction with the
// offsets and the marks of all records that were settled since the last one. What a nacked or
// rejected delivery published is thrown away. The letter of a DeadLetterTopic is part of the
// transaction. docs/exactly-once.md says what is covered.
//
// Readers of the output must have the isolation level read_committed. The subscriber has it,
// whatever its configuration says.
type Transactions struct {
	// ID is what transactional ids begin with, for rights that are given by prefix. The rest
	// is random. "" means the consumer group and a dash.
	ID string
	// Interval is how often a transaction is written, in place of CommitInterval. One comes
	// sooner if AckSync waits for it, or a lot is to be written. 0 means 100 ms.
	Interval time.Duration
	// Timeout is after how long the broker aborts a transaction whose process is gone. It
	// delays readers of the output, and the next owners of the partitions, for as long, and
	// up to 10 s more. 0 means DrainTimeout, but at most 10 s. At least 1 s.
	Timeout time.Duration
}

const (
	defaultTransactionInterval = 100 * time.Millisecond
	mostTransactionTimeout     = 10 * time.Second
	leastTransactionTimeout    = time.Second
)

func (t *Transactions) setDefaults(drain time.Duration) *Transactions {
	own := *t
	if own.Interval == 0 {
		own.Interval = defaultTransactionInterval
	}
	if own.Timeout == 0 {
		own.Timeout = max(leastTransactionTimeout, min(drain, mostTransactionTimeout))
	}
	return &own
}

// validate reports what contradicts Transactions.
func (t *Transactions) validate(c *SubscriberConfig, bad func(format string, args ...any)) {
	if c.Kafka.ConsumerGroup == "" {
		bad("Transactions: without a consumer group no offset is stored: set Kafka.ConsumerGroup")
	}
	if t.Interval < 0 {
		bad("Transactions.Interval: %v: want 0 (100ms) or a positive duration", t.Interval)
	}
	if t.Timeout < leastTransactionTimeout {
		bad("Transactions.Timeout: %v: want 0 (DrainTimeout, at most 10s) or at least 1s", t.Timeout)
	}
	if v := c.Kafka.OverwriteSaramaConfig.Version; !v.IsAtLeast(sarama.V2_5_0_0) {
		bad("Kafka.OverwriteSaramaConfig.Version: %v: Transactions need at least %v", v, sarama.V2_5_0_0)
	}
	if c.Policy != nil && *c.Policy == AckFirst {
		bad("Policy: ack_first: %w: choose another Policy, or leave Transactions nil", errAckFirst)
	}
	if err := joinable(c.DeadLetter); err != nil {
		bad("DeadLetter: %w", err)
	}
	if _, ok := inMemory(c); ok {
		bad("Transactions: the Kafka of package ackpolicytest has none: test with a broker")
	}
}

// joinable returns an error for a destination whose letters cannot be part of a transaction.
func joinable(dead DeadLetter) error {
	if p, ok := dead.(*DeadLetterTopic); ok && p != nil {
		dead = *p
	}
	switch t, ok := dead.(DeadLetterTopic); {
	case dead == nil:
	case !ok:
		return fmt.Errorf("a %T stores letters outside of the transaction: take a DeadLetterTopic, or leave Transactions nil", dead)
	case t.Brokers != nil || t.Config != nil:
		return errors.New("with Transactions, letters are written with the output, to the same cluster: leave Brokers and Config of the DeadLetterTopic nil")
	}
	return nil
}

// errAckFirst says why AckFirst and Transactions exclude each other.
var errAckFirst = errors.New("a record that is acked before its handler runs has no output that its transaction could have")

// ErrNoDelivery is returned by a Subscriber's Publisher for a message that belongs to none of
// the Subscriber's deliveries, so that there is no transaction that it could join.
var ErrNoDelivery = errors.New("ackpolicy: the context of the published message has no delivery of this Subscriber: publish what the handler returns, under a Middleware, or give the message the context of the received one (msg.SetContext); for anything else take a kafka.Publisher")

// ErrSettled is returned by a Subscriber's Publisher if the delivery is settled already:
// publish before the verb.
var ErrSettled = errors.New("ackpolicy: the delivery is settled, its transaction cannot have more output: publish before you settle")

// Publisher returns a publisher for Routers and CQRS buses whose messages become part of the
// transaction of the delivery in their context. It requires Transactions. A Middleware gives
// what handlers return the delivery. Publish returns nil once the messages are held: they
// are visible once the record is settled as acked and its transaction is stored.
//
// Of the configuration, Brokers may be empty, and otherwise must be those of the Subscriber.
// If OverwriteSaramaConfig is nil, the Subscriber's is used; it must be the same for all
// Publishers of a Subscriber. Its Producer.Flush.Bytes, Messages and Frequency do not apply.
// Publishers must be made before the first Subscribe.
func (s *Subscriber) Publisher(config kafka.PublisherConfig) (message.Publisher, error) {
	bad := func(format string, args ...any) (message.Publisher, error) {
		return nil, fmt.Errorf("ackpolicy: Publisher: "+format, args...)
	}
	if s.config.Transactions == nil {
		return bad("there are no transactions: set SubscriberConfig.Transactions, or take a kafka.Publisher")
	}
	if len(config.Brokers) > 0 && !slices.Equal(config.Brokers, s.config.Kafka.Brokers) {
		return bad("Brokers: %v: a transaction stays within one cluster: leave them empty, or give those of the Subscriber", config.Brokers)
	}
	if config.Tracer != nil || config.OTELEnabled {
		return bad("Tracer, OTELEnabled: not supported with Transactions: leave them out")
	}
	producer := config.OverwriteSaramaConfig
	if producer == nil {
		producer = s.config.Kafka.OverwriteSaramaConfig
	}
	if !producer.Version.IsAtLeast(sarama.V2_5_0_0) {
		return bad("OverwriteSaramaConfig.Version: %v: Transactions need at least %v", producer.Version, sarama.V2_5_0_0)
	}
	if err := transact.Config(producer, "validated", s.config.Transactions.Timeout).Validate(); err != nil {
		return bad("OverwriteSaramaConfig: %w", err)
	}
	marshaler := config.Marshaler
	if marshaler == nil {
		marshaler = kafka.DefaultMarshaler{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.producing == producer:
	case s.producing != nil:
		return bad("OverwriteSaramaConfig: differs from that of another Publisher of the Subscriber: a subscription has one producer")
	case s.subscribed:
		return bad("it must be made before the first Subscribe")
	default:
		s.producing = producer
	}
	return &publisher{s, marshaler, producer.Producer.MaxMessageBytes}, nil
}

// transactions returns the configuration of a subscription's transactions, nil for none.
func (s *Subscriber) transactions() *consumer.Transactions {
	t := s.config.Transactions
	if t == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribed = true
	producer := s.producing
	if producer == nil {
		producer = s.config.Kafka.OverwriteSaramaConfig
	}
	id := t.ID
	if id == "" {
		id = s.config.Kafka.ConsumerGroup + "-"
	}
	return &consumer.Transactions{Sarama: transact.Config(producer, id+watermill.NewUUID(), t.Timeout), Timeout: t.Timeout}
}

// mostOutput returns the size of the largest message that the producer writes.
func (s *Subscriber) mostOutput() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.producing != nil {
		return s.producing.Producer.MaxMessageBytes
	}
	return s.config.Kafka.OverwriteSaramaConfig.Producer.MaxMessageBytes
}

// publisher implements message.Publisher with the transactions of deliveries.
type publisher struct {
	sub       *Subscriber
	marshaler kafka.Marshaler
	most      int // Producer.MaxMessageBytes
}

// Publish implements message.Publisher. If it returns an error, none of the messages is held.
func (p *publisher) Publish(topic string, messages ...*message.Message) error {
	type output struct {
		d     *Delivery
		items []partition.Output
		bytes int64
	}
	var outputs []output
	for _, msg := range messages {
		d, ok := FromMessage(msg)
		if !ok || d.sub == nil || d.sub.sub != p.sub {
			return fmt.Errorf("message %s to topic %s: %w", msg.UUID, topic, ErrNoDelivery)
		}
		m, err := p.marshaler.Marshal(topic, msg)
		if err != nil {
			return fmt.Errorf("ackpolicy: cannot marshal message %s: %w", msg.UUID, err)
		}
		size := m.ByteSize(2)
		if size > p.most { // found out later, it would keep the whole transaction from being stored
			return fmt.Errorf("ackpolicy: message %s to topic %s has %d bytes, Producer.MaxMessageBytes is %d: %w",
				msg.UUID, topic, size, p.most, sarama.ErrMessageSizeTooLarge)
		}
		if n := len(outputs); n == 0 || outputs[n-1].d != d {
			outputs = append(outputs, output{d: d})
		}
		o := &outputs[len(outputs)-1]
		o.items, o.bytes = append(o.items, m), o.bytes+int64(size)+outputOverhead
	}
	if len(outputs) > 1 {
		return errors.New("ackpolicy: the messages of one Publish belong to several deliveries: publish those of each alone")
	}
	for _, o := range outputs {
		if o.d.kafka.Hold(o.items, o.bytes) {
			continue
		}
		if cause := o.d.ending.stopped(); cause != nil || o.d.Status() == Revoked {
			return o.d.position(errors.Join(ErrRevoked, cause))
		}
		return o.d.position(ErrSettled)
	}
	return nil
}

// outputOverhead is approximately what a held message takes in addition to its content.
const outputOverhead = 200

// Close implements message.Publisher. What is held is stored by the Subscriber.
func (p *publisher) Close() error { return nil }

// join makes what a handler returns belong to its delivery.
func (d *Delivery) join(produced []*message.Message) {
	for _, msg := range produced {
		if msg == nil {
			continue
		}
		if own, ok := FromMessage(msg); !ok || own != d {
			msg.SetContext(context.WithValue(msg.Context(), deliveryKey{}, d))
		}
	}
}

// transactional reports whether the delivery's output joins a transaction.
func (d *Delivery) transactional() bool { return d.sub != nil && d.sub.sub.config.Transactions != nil }

// joinLetter adds the letter of a rejected delivery to the transaction of its record.
func (s *subscription) joinLetter(ctx context.Context, d *Delivery, to *letters, record *sarama.ConsumerMessage, letter Letter) error {
	if err := joinable(to.of); err != nil {
		return &write.Refused{Err: fmt.Errorf("%s: %w", to.setting, err)}
	}
	opened, err := to.open(ctx, letter.Topic)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", to.setting, err)
	}
	topic := opened.(*letterTopic) // no other is joinable
	return topic.send(ctx, record, letter, topic.holdLetter(d, s.sub.mostOutput()))
}

// holdLetter returns a function that writes a letter into the transaction of its record.
func (t *letterTopic) holdLetter(d *Delivery, most int) func(context.Context, write.Record) error {
	return func(_ context.Context, r write.Record) error {
		m := &sarama.ProducerMessage{
			Topic: t.name, Headers: r.Headers, Timestamp: r.Timestamp, Metadata: transact.Placement(r.Partition),
		}
		if r.Key != nil {
			m.Key = sarama.ByteEncoder(r.Key)
		}
		if r.Value != nil {
			m.Value = sarama.ByteEncoder(r.Value)
		}
		size := m.ByteSize(2)
		if size > most || t.limit > 0 && r.Size() > t.limit {
			return &write.Refused{Err: sarama.ErrMessageSizeTooLarge}
		}
		if !d.kafka.HoldLetter(m, int64(size)+outputOverhead) {
			return ErrRevoked
		}
		return nil
	}
}
