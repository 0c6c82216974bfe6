package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/connections"
	"github.com/ackpolicy/watermill-ackpolicy/internal/dial"
	"github.com/ackpolicy/watermill-ackpolicy/internal/kafkactx"
	"github.com/ackpolicy/watermill-ackpolicy/internal/write"
)

// DeadLetterTopic writes rejected records to a Kafka topic: key, value, headers and
// timestamp as they were, with the result of Headers appended to the headers. A letter
// goes to the partition with the number of the record's partition if the topic has that
// many, otherwise to one chosen by key. A letter that is too large for the topic is
// compressed.
//
// Subscribe connects to the topic, and returns an error if it does not exist and Create is
// nil. If the topic accepts less than the topic that the records come from, Subscribe logs
// that as an error.
type DeadLetterTopic struct {
	// Topic returns the name of the dead letter topic for a topic. nil appends ".dlq".
	Topic func(origin string) string
	// Headers returns the headers of a letter. nil means HeadersAckpolicy.
	Headers HeaderProfile
	// Create creates the topic if it does not exist, now or after somebody deleted it.
	// nil does not. NumPartitions 0 means as many as the source topic has, and
	// ReplicationFactor 0 the broker's default.
	//
	// Unless ConfigEntries has them, retention.ms is -1, since a letter keeps the
	// timestamp of its record, from which retention counts, and max.message.bytes is
	// that of the source topic plus room for the headers. If the broker refuses these
	// two, the topic is created without them, which is logged.
	Create *sarama.TopicDetail
	// Brokers and Config default to those of the subscriber. Letters are always
	// produced idempotently.
	Brokers []string
	Config  *sarama.Config
}

// Send implements DeadLetter. It returns an error: a DeadLetterTopic only works as
// SubscriberConfig.DeadLetter.
func (t DeadLetterTopic) Send(context.Context, *sarama.ConsumerMessage, Letter) error {
	return errors.New("ackpolicy: DeadLetterTopic works as SubscriberConfig.DeadLetter only")
}

// letterTopic is an opened DeadLetterTopic.
type letterTopic struct {
	name     string
	headers  func(Letter) []sarama.RecordHeader
	reduce   bool
	logger   watermill.LoggerAdapter
	lease    *connections.Lease
	client   sarama.Client // shared with other letterTopics
	writer   *write.Writer
	limit    int                             // max.message.bytes; 0 if not known
	create   func(ctx context.Context) error // nil if the topic is not to be created
	creating chan struct{}                   // a lock around creating it again
}

func (t DeadLetterTopic) open(ctx context.Context, c *SubscriberConfig, origin string, logger watermill.LoggerAdapter) (_ DeadLetter, err error) {
	name := topicFor(t.Topic, origin)
	if name == origin {
		return nil, fmt.Errorf("ackpolicy: DeadLetter: the letters of topic %s would go to the topic itself", origin)
	}
	brokers, cfg := t.Brokers, t.Config
	if brokers == nil {
		brokers = c.Kafka.Brokers
	}
	if cfg == nil {
		cfg = c.Kafka.OverwriteSaramaConfig
	}
	opened := &letterTopic{
		name: name, headers: t.Headers, reduce: c.OnUnstorable == UnstorableReduce,
		logger:   logger.With(watermill.LogFields{"dead_letter_topic": name}),
		creating: make(chan struct{}, 1),
	}
	if opened.headers == nil {
		opened.headers = HeadersAckpolicy
	}
	if opened.lease, err = c.Connections.joinLetters(ctx, brokers, cfg); err == nil {
		if err = opened.connect(ctx, t, c, origin); err != nil {
			err = errors.Join(dial.Explain(cfg, err), opened.lease.Release())
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("ackpolicy: DeadLetter: topic %s on %v: %w", name, brokers, err)
	}
	return opened, nil
}

func (t *letterTopic) connect(ctx context.Context, d DeadLetterTopic, c *SubscriberConfig, origin string) error {
	defer t.lease.AbortLate(ctx.Done())()
	t.client = t.lease.Shared(0)
	from, err := askSource(ctx, t.client, d, c, origin)
	if err != nil {
		return err
	}
	if d.Create != nil {
		t.create = func(ctx context.Context) error { return t.createTopic(ctx, d.Create, from) }
	}
	if err := t.ensure(ctx); err != nil {
		return err
	}
	t.compare(from)
	if ctx.Err() != nil { // the end of ctx ends one request at a time
		return context.Cause(ctx)
	}
	if t.writer, err = write.New(t.client, t.name); err != nil {
		return err
	}
	t.writer.SetLimit(t.limit)
	return nil
}

func letterConfig(user *sarama.Config) *sarama.Config {
	c := *user
	c.Producer.Idempotent = false // the writer sees to it; sarama's producer is not used
	c.Producer.Transaction.ID = ""
	c.Metadata.AllowAutoTopicCreation = false
	c.Metadata.Full = false
	if !c.Version.IsAtLeast(sarama.V0_11_0_0) {
		c.Version = sarama.V0_11_0_0
	}
	return &c
}

// Send implements DeadLetter. It returns when ctx ends, whether or not a letter that is
// under way will be stored.
func (t *letterTopic) Send(ctx context.Context, record *sarama.ConsumerMessage, letter Letter) error {
	return t.send(ctx, record, letter, t.write)
}

// send stores a letter by a function that writes a record.
func (t *letterTopic) send(ctx context.Context, record *sarama.ConsumerMessage, letter Letter, store func(context.Context, write.Record) error) error {
	partition, err := t.partition(record)
	if err == nil || t.create != nil {
		r := write.Record{
			Partition: partition,
			Key:       record.Key, // nil and empty keys and values differ
			Value:     record.Value,
			Headers:   letterHeaders(record.Headers, t.headers(letter)),
			Timestamp: recordTime(record.Timestamp),
			ID:        letterID{letter.Topic, letter.Partition, letter.Offset, letter.RejectedAt},
		}
		if r.Timestamp.After(lastTime) {
			replaceTimestamp(&r, letter)
		}
		err = store(ctx, r)
		for less := 0; t.reduce && less < mostReductions && t.reduced(err, &r, record, letter); less++ {
			if err = store(ctx, r); err == nil {
				t.tellReduced(r, record)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("cannot write to dead letter topic %s%s: %w", t.name, settingAtFault(err), err)
	}
	return nil
}

// letterID identifies a letter. A record that is rejected again has another letter.
type letterID struct {
	topic      string
	partition  int32
	offset     int64
	rejectedAt time.Time
}

// write writes a letter. It creates the topic if that was deleted.
func (t *letterTopic) write(ctx context.Context, r write.Record) error {
	err := t.writer.Write(ctx, r)
	if t.create == nil || !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		return err
	}
	if cerr := t.createAgain(ctx); cerr != nil {
		return errors.Join(err, cerr)
	}
	return t.writer.Write(ctx, r)
}

// partition returns the partition for a record's letter: the same number if the topic
// has it.
func (t *letterTopic) partition(record *sarama.ConsumerMessage) (int32, error) {
	partitions, err := t.client.Partitions(t.name)
	if err != nil || len(partitions) == 0 {
		return record.Partition, err
	}
	n := int32(len(partitions))
	if record.Partition < n {
		return record.Partition, nil
	}
	if record.Key == nil {
		return record.Partition % n, nil // the same at each attempt
	}
	return sarama.NewHashPartitioner(t.name).Partition(&sarama.ProducerMessage{Key: sarama.ByteEncoder(record.Key)}, n)
}

// settingAtFault names the setting of the topic because of which a letter is refused.
func settingAtFault(err error) string {
	switch {
	case !is[*write.Refused](err):
		return ""
	case tooLarge(err):
		return ": it is too large, see the topic's max.message.bytes"
	case errors.Is(err, sarama.ErrInvalidTimestamp):
		return ": its timestamp is out of bounds, see the topic's message.timestamp.before.max.ms and message.timestamp.after.max.ms"
	case errors.Is(err, sarama.ErrInvalidRecord):
		return ": does it have no key, and the topic cleanup.policy=compact?"
	}
	return ""
}

func tooLarge(err error) bool {
	return errors.Is(err, sarama.ErrMessageSizeTooLarge) || errors.Is(err, sarama.ErrMessageSetSizeTooLarge)
}

// close is called once nobody sends any more. Requests under way have a moment to end.
func (t *letterTopic) close() error {
	closing := make(chan struct{})
	close(closing)
	done := t.lease.AbortLate(closing)
	t.writer.Close()
	done()
	return t.lease.Release()
}

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
