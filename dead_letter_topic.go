package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/dial"
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
	// the origin has; ReplicationFactor 0 is the broker's default. Without entries of
	// their own, retention.ms is -1, since a letter keeps its record's timestamp, which
	// retention counts from, and max.message.bytes is the origin's and room for the headers.
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
	dialer   *dial.Dialer
	client   sarama.Client
	producer sarama.AsyncProducer
	answers  sync.WaitGroup
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
	opened := &letterTopic{name: name, headers: t.Headers, dialer: dial.New(cfg)}
	if opened.headers == nil {
		opened.headers = HeadersAckpolicy
	}
	defer context.AfterFunc(ctx, opened.dialer.Cut)()
	if err := opened.connect(brokers, cfg, func(client sarama.Client) error {
		return t.ensure(ctx, client, name, origin)
	}); err != nil {
		opened.dialer.Cut()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("ackpolicy: DeadLetter: topic %s on %v: %w", name, brokers, dial.Explain(cfg, err))
	}
	return opened, nil
}

func (t *letterTopic) connect(brokers []string, cfg *sarama.Config, check func(sarama.Client) error) (err error) {
	if t.client, err = sarama.NewClient(brokers, cfg); err != nil {
		return err
	}
	if err = check(t.client); err != nil {
		return errors.Join(err, t.client.Close())
	}
	if t.producer, err = sarama.NewAsyncProducerFromClient(t.client); err != nil {
		return errors.Join(err, t.client.Close())
	}
	t.answers.Go(func() {
		for msg := range t.producer.Successes() {
			msg.Metadata.(chan error) <- nil
		}
	})
	t.answers.Go(func() {
		for err := range t.producer.Errors() {
			err.Msg.Metadata.(chan error) <- err.Err
		}
	})
	return nil
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
	c.Producer.MaxMessageBytes = int(sarama.MaxRequestSize) - 1 // what was consumed must fit: the broker's limit counts
	// A letter on its way holds nobody up.
	c.Producer.Flush.Messages, c.Producer.Flush.Bytes, c.Producer.Flush.Frequency = 0, 0, 0
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
	if errors.Is(err, sarama.ErrTopicAuthorizationFailed) {
		return fmt.Errorf("the user needs the right to write to it: %w", err)
	}
	if t.Create == nil {
		return fmt.Errorf("it is not there: create it, or set DeadLetterTopic.Create: %w", errors.Join(err, sarama.ErrUnknownTopicOrPartition))
	}
	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return err
	}
	// The admin is not closed: that would close the client, which is ours.
	detail, err := t.detail(client, admin, origin)
	if err != nil {
		return err
	}
	if err := admin.CreateTopic(name, detail, false); err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists) {
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

// letterRoom is what a letter's headers may add to a record.
const letterRoom = 64 << 10

// detail is Create with what it leaves open.
func (t DeadLetterTopic) detail(client sarama.Client, admin sarama.ClusterAdmin, origin string) (*sarama.TopicDetail, error) {
	detail := *t.Create
	if detail.NumPartitions == 0 {
		partitions, err := client.Partitions(origin)
		if err != nil {
			return nil, fmt.Errorf("cannot ask how many partitions %s has: %w", origin, err)
		}
		detail.NumPartitions = int32(len(partitions))
	}
	if detail.ReplicationFactor == 0 {
		detail.ReplicationFactor = -1
	}
	entries := maps.Clone(detail.ConfigEntries)
	if entries == nil {
		entries = map[string]*string{}
	}
	preset := func(name, value string) {
		if _, ok := entries[name]; !ok {
			entries[name] = &value
		}
	}
	preset("retention.ms", "-1") // it counts from the record's own timestamp, which may be long ago
	if largest := largestRecord(admin, origin); largest > 0 {
		preset("max.message.bytes", strconv.Itoa(largest+letterRoom))
	}
	detail.ConfigEntries = entries
	return &detail, nil
}

// largestRecord answers the topic's max.message.bytes; 0 where we may not ask.
func largestRecord(admin sarama.ClusterAdmin, topic string) int {
	const name = "max.message.bytes"
	results, err := admin.DescribeConfigs([]*sarama.ConfigResource{
		{Type: sarama.TopicResource, Name: topic, ConfigNames: []string{name}},
	}, sarama.DescribeConfigsOptions{})
	if err != nil {
		return 0
	}
	for _, r := range results {
		for _, e := range r.Configs {
			if e.Name == name {
				n, _ := strconv.Atoi(e.Value)
				return n
			}
		}
	}
	return 0
}

// Send implements DeadLetter. It returns with ctx, whose end says nothing about a
// letter on its way.
func (t *letterTopic) Send(ctx context.Context, record *sarama.ConsumerMessage, letter Letter) error {
	answer := make(chan error, 1)
	msg := &sarama.ProducerMessage{
		Topic:     t.name,
		Partition: record.Partition,
		Timestamp: record.Timestamp,
		Headers:   letterHeaders(record.Headers, t.headers(letter)),
		Metadata:  answer,
	}
	// A nil key or value is one, an empty one is another.
	if record.Key != nil {
		msg.Key = sarama.ByteEncoder(record.Key)
	}
	if record.Value != nil {
		msg.Value = sarama.ByteEncoder(record.Value)
	}
	select {
	case t.producer.Input() <- msg:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-answer:
		if err != nil {
			return fmt.Errorf("cannot write to dead letter topic %s: %w", t.name, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("dead letter topic %s has not answered: %w", t.name, context.Cause(ctx))
	}
}

// close follows the end of all that send: what is still under way waits for nobody.
func (t *letterTopic) close() error {
	t.dialer.Cut()
	t.producer.AsyncClose()
	t.answers.Wait()
	return t.client.Close()
}

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
