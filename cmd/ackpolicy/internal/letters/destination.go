package letters

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
)

var (
	errNoOrigin = errors.New("the headers name no origin topic")
	errItself   = errors.New("the origin is the dead letter topic itself")
	errCutOff   = errors.New("the letter has only the beginning of its record's value (" + ackpolicy.HeaderTruncated + ")")
)

// destinations are the topics that letters go to.
type destinations struct {
	client sarama.Client
	from   string
	to     string // instead of the origin, unless empty
	known  map[string]found
}

// found is what a topic was found to be, or why it cannot be used: to ask for one
// that is missing takes sarama seconds.
type found struct {
	*destination
	err error
}

type destination struct {
	topic      string
	partitions int32
	byKey      sarama.Partitioner
}

var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// of returns where a letter goes. It asks for a topic's partitions once.
func (d *destinations) of(l *letter) (*destination, error) {
	topic := d.to
	if topic == "" {
		topic = l.Origin.Topic
	}
	switch {
	case l.cutOff:
		return nil, errCutOff
	case topic == "":
		return nil, errNoOrigin
	case topic == d.from:
		return nil, errItself
	}
	if known, ok := d.known[topic]; ok {
		return known.destination, known.err
	}
	if !topicName.MatchString(topic) {
		return nil, fmt.Errorf("topic %s: %w", cli.Clean(cli.Cut(topic, 100)), kafka.ErrNoTopic)
	}
	var f found
	partitions, err := d.client.Partitions(topic)
	switch {
	case errors.Is(err, sarama.ErrUnknownTopicOrPartition), err == nil && len(partitions) == 0:
		f.err = fmt.Errorf("topic %s: %w", topic, kafka.ErrNoTopic)
	case err != nil:
		f.err = fmt.Errorf("topic %s: %w", topic, err)
	default:
		f.destination = &destination{topic, int32(len(partitions)), sarama.NewHashPartitioner(topic)}
	}
	if d.known == nil {
		d.known = map[string]found{}
	}
	d.known[topic] = f
	return f.destination, f.err
}

// partition is the number that the record had at first, where there is such a one, so
// that it comes behind the other records of its key; else one by key, as sarama and
// Watermill choose it; without a key the letter's own, or a lower one.
func (d *destination) partition(l *letter) int32 {
	switch p := l.Origin.Partition; {
	case p >= 0 && p < d.partitions:
		return p
	case l.record.Key != nil:
		if p, err := d.byKey.Partition(&sarama.ProducerMessage{Key: sarama.ByteEncoder(l.record.Key)}, d.partitions); err == nil {
			return p
		}
	}
	return l.record.Partition % d.partitions
}

// What --timestamp gives a record.
const (
	timestampNow      = "now"
	timestampOriginal = "original"
)

// message is the record on its way back. A nil key or value is one, an empty one is another.
func (d *destination) message(l *letter, headers, timestamp string) *sarama.ProducerMessage {
	m := &sarama.ProducerMessage{
		Topic: d.topic, Partition: d.partition(l), Headers: l.headers(headers),
		Key: sarama.ByteEncoder(l.record.Key), Value: sarama.ByteEncoder(l.record.Value),
	}
	if l.header(ackpolicy.HeaderNullKey) != "" {
		m.Key = nil
	}
	if timestamp == timestampOriginal {
		m.Timestamp = l.record.Timestamp
		if at := moment(l.header(ackpolicy.HeaderOriginalTimestamp)); !at.IsZero() {
			m.Timestamp = at
		}
		if !l.Origin.Timestamp.IsZero() {
			m.Timestamp = l.Origin.Timestamp
		}
	}
	return m
}
