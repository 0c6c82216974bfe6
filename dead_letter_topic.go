package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// DeadLetterTopic writes rejected records to a Kafka topic: the raw record, with
// its key, value, headers and timestamp as they were, and behind the headers what
// Headers tells of the letter. A letter goes to the record's own partition number
// where the topic has that many, else to one chosen by key.
//
// The subscriber connects it when it subscribes, and Subscribe fails if the topic
// is not there and Create is nil.
type DeadLetterTopic struct {
	// Topic names the topic of a topic's letters; nil is its name with ".dlq" behind it.
	Topic func(origin string) string
	// Headers of a letter; nil is HeadersAckpolicy.
	Headers func(Letter) []sarama.RecordHeader
	// Create creates the topic where it is missing. NumPartitions 0 is as many as
	// the origin has; ReplicationFactor 0 is the broker's default.
	Create *sarama.TopicDetail
	// Brokers and Config are those of the subscriber where they are nil. The
	// producer is idempotent whatever Config says.
	Brokers []string
	Config  *sarama.Config
}

// Send implements DeadLetter for a topic that its subscriber has not opened.
func (t DeadLetterTopic) Send(context.Context, *sarama.ConsumerMessage, Letter) error {
	return errors.New("ackpolicy: DeadLetterTopic works as SubscriberConfig.DeadLetter only")
}

// openDeadLetter answers the destination of a subscription's letters.
func (s *Subscriber) openDeadLetter(ctx context.Context, topic string) (DeadLetter, error) {
	switch dead := s.config.DeadLetter.(type) {
	case DeadLetterTopic:
		return dead.open(ctx, &s.config, topic)
	case *DeadLetterTopic:
		return dead.open(ctx, &s.config, topic)
	default:
		return dead, nil
	}
}

func closeDeadLetter(d DeadLetter) error {
	if t, ok := d.(*letterTopic); ok {
		return t.close()
	}
	return nil
}

// letterTopic is an opened DeadLetterTopic.
type letterTopic struct {
	name     string
	headers  func(Letter) []sarama.RecordHeader
	client   sarama.Client
	producer sarama.SyncProducer
}

func (t DeadLetterTopic) open(ctx context.Context, c *SubscriberConfig, origin string) (DeadLetter, error) {
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
	cfg = letterConfig(cfg)
	client, err := sarama.NewClient(brokers, cfg)
	if err != nil {
		return nil, fmt.Errorf("ackpolicy: DeadLetter: cannot connect to %v for topic %s: %w", brokers, name, err)
	}
	if err := t.ensure(ctx, client, name, origin); err != nil {
		return nil, errors.Join(fmt.Errorf("ackpolicy: DeadLetter: topic %s: %w", name, err), client.Close())
	}
	producer, err := sarama.NewSyncProducerFromClient(client)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ackpolicy: DeadLetter: %w", err), client.Close())
	}
	opened := &letterTopic{name: name, headers: t.Headers, client: client, producer: producer}
	if opened.headers == nil {
		opened.headers = HeadersAckpolicy
	}
	return opened, nil
}

func letterConfig(user *sarama.Config) *sarama.Config {
	c := *user
	c.Producer.Idempotent = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Net.MaxOpenRequests = 1
	c.Producer.Return.Successes = true
	c.Producer.Return.Errors = true
	c.Producer.Transaction.ID = ""
	c.Producer.Interceptors = nil // the record is to stay as it was
	c.Producer.Retry.Max = max(c.Producer.Retry.Max, 3)
	c.Producer.Partitioner = samePartition
	c.Metadata.AllowAutoTopicCreation = false
	if !c.Version.IsAtLeast(sarama.V0_11_0_0) {
		c.Version = sarama.V0_11_0_0
	}
	return &c
}

// ensure checks that the topic is there, and creates it where that was asked for.
func (t DeadLetterTopic) ensure(ctx context.Context, client sarama.Client, name, origin string) error {
	err := client.RefreshMetadata(name)
	if err == nil {
		if partitions, perr := client.Partitions(name); perr == nil && len(partitions) > 0 {
			return nil
		}
	}
	if t.Create == nil {
		return fmt.Errorf("it is not there: create it, or set DeadLetterTopic.Create: %w", errors.Join(err, sarama.ErrUnknownTopicOrPartition))
	}
	detail := *t.Create
	if detail.NumPartitions == 0 {
		partitions, err := client.Partitions(origin)
		if err != nil {
			return fmt.Errorf("cannot ask how many partitions %s has: %w", origin, err)
		}
		detail.NumPartitions = int32(len(partitions))
	}
	if detail.ReplicationFactor == 0 {
		detail.ReplicationFactor = -1
	}
	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return err
	}
	// The admin is not closed: that would close the client, which is ours.
	if err := admin.CreateTopic(name, &detail, false); err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists) {
		return fmt.Errorf("cannot create it: %w", err)
	}
	for range 50 { // its leaders take a moment
		if err = client.RefreshMetadata(name); err == nil {
			if writable, werr := client.WritablePartitions(name); werr == nil && len(writable) >= int(detail.NumPartitions) {
				return nil
			}
		}
		if !wait.For(100*time.Millisecond, ctx.Done()) {
			return context.Cause(ctx)
		}
	}
	return fmt.Errorf("it was created, but has no leaders: %w", err)
}

// Send implements DeadLetter.
func (t *letterTopic) Send(_ context.Context, record *sarama.ConsumerMessage, letter Letter) error {
	msg := &sarama.ProducerMessage{
		Topic:     t.name,
		Partition: record.Partition,
		Timestamp: record.Timestamp,
		Headers:   letterHeaders(record.Headers, t.headers(letter)),
	}
	// A nil key or value is one, an empty one is another.
	if record.Key != nil {
		msg.Key = sarama.ByteEncoder(record.Key)
	}
	if record.Value != nil {
		msg.Value = sarama.ByteEncoder(record.Value)
	}
	if _, _, err := t.producer.SendMessage(msg); err != nil {
		return fmt.Errorf("cannot write to dead letter topic %s: %w", t.name, err)
	}
	return nil
}

func (t *letterTopic) close() error { return errors.Join(t.producer.Close(), t.client.Close()) }

// samePartition keeps a record's partition number where the topic has it.
func samePartition(topic string) sarama.Partitioner {
	return &partitioner{byKey: sarama.NewHashPartitioner(topic)}
}

type partitioner struct{ byKey sarama.Partitioner }

func (p *partitioner) Partition(msg *sarama.ProducerMessage, n int32) (int32, error) {
	if msg.Partition < n {
		return msg.Partition, nil
	}
	return p.byKey.Partition(msg, n)
}

func (p *partitioner) RequiresConsistency() bool { return true }
