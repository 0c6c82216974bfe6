package ackpolicy_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

var errPoison = errors.New("poison")

// letters reads everything that a dead letter topic's partition holds.
func letters(t *testing.T, topic string, partition int32, n int) []*sarama.ConsumerMessage {
	t.Helper()
	return lettersOf(t, shared, topic, partition, n)
}

func lettersOf(t *testing.T, broker *brokertest.Broker, topic string, partition int32, n int) []*sarama.ConsumerMessage {
	t.Helper()
	consumer, err := sarama.NewConsumer(broker.Addrs(), sarama.NewConfig())
	check(t, err)
	defer consumer.Close()
	pc, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
	check(t, err)
	defer pc.Close()
	var all []*sarama.ConsumerMessage
	for len(all) < n {
		all = append(all, await(t, "a letter", pc.Messages()))
	}
	if end, err := brokertest.EndOffset(broker.Addrs(), topic, partition); err != nil || end != int64(n) {
		t.Errorf("%s/%d ends at %d (%v), want %d letters", topic, partition, end, err, n)
	}
	return all
}

func headers(r *sarama.ConsumerMessage) map[string]string {
	m := map[string]string{}
	for _, h := range r.Headers {
		m[string(h.Key)] += string(h.Value)
	}
	return m
}

func toTopic(c *ackpolicy.SubscriberConfig) {
	c.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}}
}

// A poison record costs MaxDeliveries deliveries and one letter; those behind it are delivered.
func TestPoisonBecomesALetter(t *testing.T) {
	t.Parallel()
	stamp := anHourAgo()
	poison := brokertest.Record{
		Key: []byte("k"), Value: []byte("\x00not utf8\xff"), Timestamp: stamp,
		Headers: []sarama.RecordHeader{{Key: []byte("h"), Value: []byte("\xfe")}, {Key: []byte("h"), Value: nil}},
	}
	topic := newTopic(t, 3)
	produce(t, topic, 2, poison)
	produce(t, topic, 2, numbered(2)...)
	cfg := config(brokertest.Group(t), toTopic)
	cfg.MaxDeliveries = 5
	s := consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return fmt.Errorf("cannot charge: %w", errPoison)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	waitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 2, 3)
	s.stop()
	s.journal.want(t, "0#1", "0#2", "0#3", "0#4", "0#5", "1#1", "2#1")
	wantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 2, 3)

	letter := letters(t, topic+".dlq", 2, 1)[0]
	if !bytes.Equal(letter.Key, poison.Key) || !bytes.Equal(letter.Value, poison.Value) || !letter.Timestamp.Equal(stamp) {
		t.Errorf("the letter is not the record: key %q, value %q, timestamp %v", letter.Key, letter.Value, letter.Timestamp)
	}
	if h := letter.Headers[:2]; string(h[0].Value) != "\xfe" || h[1].Value != nil {
		t.Errorf("the record's own headers changed: %v", h)
	}
	got := headers(letter)
	for key, want := range map[string]string{
		ackpolicy.HeaderTopic: topic, ackpolicy.HeaderPartition: "2", ackpolicy.HeaderOffset: "0",
		ackpolicy.HeaderGroup: cfg.Kafka.ConsumerGroup, ackpolicy.HeaderHandler: "handler",
		ackpolicy.HeaderReason: "cannot charge: poison", ackpolicy.HeaderErrors: "*fmt.wrapError < *errors.errorString",
		ackpolicy.HeaderAttempts: "5", ackpolicy.HeaderRejections: "1",
	} {
		if got[key] != want {
			t.Errorf("header %s: got %q, want %q", key, got[key], want)
		}
	}
	for _, key := range []string{ackpolicy.HeaderTimestamp, ackpolicy.HeaderRejectedAt} {
		if _, err := time.Parse(time.RFC3339Nano, got[key]); err != nil {
			t.Errorf("header %s: %v", key, err)
		}
	}
}

// flaky fails until it is told otherwise.
type flaky struct {
	down  atomic.Bool
	tried atomic.Int32
	sent  atomic.Int32
}

func (f *flaky) Send(context.Context, *sarama.ConsumerMessage, ackpolicy.Letter) error {
	f.tried.Add(1)
	if f.down.Load() {
		return errors.New("the dead letter topic is down")
	}
	f.sent.Add(1)
	return nil
}

// While a letter cannot be stored nothing is committed past its record, others
// are delivered, and the letter is stored once that works again.
func TestLetterWaitsForItsTopic(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 1, numbered(5)...)
	dead := &flaky{}
	dead.down.Store(true)
	cfg := config(brokertest.Group(t))
	cfg.DeadLetter = dead
	s := consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			return ackpolicy.ErrReject
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, 5)
	eventually(t, "a second try", func() bool { return dead.tried.Load() > 1 })
	waitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 1)
	wantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 1)
	dead.down.Store(false)
	waitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 5)
	s.stop()
	if n := dead.sent.Load(); n != 1 {
		t.Errorf("%d letters", n)
	}
	if len(with(s.log.at("error"), "Dead letter not stored")) == 0 {
		t.Error("nobody was told")
	}
}

// What cannot be stored before the drain ends is left to the next owner.
func TestLetterIsLeftToTheNextOwner(t *testing.T) {
	t.Parallel()
	topic, group := newTopic(t, 1, numbered(3)...), brokertest.Group(t)
	dead := &flaky{}
	dead.down.Store(true)
	for round := range 2 {
		cfg := config(group, drainTimeout(300*time.Millisecond))
		cfg.DeadLetter = dead
		s := consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
			if d.Offset() == 1 {
				return ackpolicy.ErrReject
			}
			return nil
		}, ackpolicy.NackOnError.Middleware)
		s.journal.wait(t, 3-2*round) // the last record is settled, and does not come again
		if round == 1 {
			dead.down.Store(false)
		}
		s.stop()
		wantCommitted(t, group, topic, 0, []int64{1, 3}[round])
	}
	if n := dead.sent.Load(); n != 1 {
		t.Errorf("%d letters", n)
	}
}

// badValues cannot decode a record with the value "bad".
type badValues struct{ kafka.DefaultMarshaler }

func (u badValues) Unmarshal(r *sarama.ConsumerMessage) (*message.Message, error) {
	if string(r.Value) == "bad" {
		return nil, errPoison
	}
	return u.DefaultMarshaler.Unmarshal(r)
}

func TestOnUndecodable(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		on     ackpolicy.Undecodable
		letter bool
		stored int64
	}{
		"auto with a dead letter":      {ackpolicy.UndecodableAuto, true, 3},
		"auto without":                 {ackpolicy.UndecodableAuto, false, 1},
		"retry with a dead letter":     {ackpolicy.UndecodableRetry, true, 1},
		"reject with a dead letter":    {ackpolicy.UndecodableReject, true, 3},
		"reject without a dead letter": {ackpolicy.UndecodableReject, false, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := newTopic(t, 1, brokertest.Values("good", "bad", "good")...)
			cfg := config(brokertest.Group(t), ordering(ackpolicy.Unordered, 2))
			cfg.Kafka.Unmarshaler = badValues{}
			cfg.OnUndecodable = test.on
			if test.letter {
				toTopic(&cfg)
			}
			s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, 2)
			if test.stored == 1 {
				eventually(t, "a second try", func() bool { return len(with(s.log.at("error", "debug"), "cannot be decoded")) > 1 })
			}
			waitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, test.stored)
			s.stop()
			wantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, test.stored)
			if test.letter && test.stored == 3 {
				letter := letters(t, topic+".dlq", 0, 1)[0]
				if reason := headers(letter)[ackpolicy.HeaderReason]; string(letter.Value) != "bad" || !strings.Contains(reason, "poison") {
					t.Errorf("letter %q for %q", letter.Value, reason)
				}
			}
		})
	}
}

// A tombstone, a record without a key and one with an empty key stay what they are; a
// letter that is rejected again keeps its first origin and does not grow.
func TestLetterOfALetter(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 1, brokertest.Record{Key: []byte("tombstone")}, brokertest.Record{Value: []byte("no key")},
		brokertest.Record{Key: []byte{}, Value: []byte("empty key")})
	reject := func(topic, to string) {
		cfg := config(brokertest.Group(t))
		cfg.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}, Topic: func(string) string { return to }}
		s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error {
			return ackpolicy.RejectWith(errPoison)
		}, ackpolicy.NackOnError.Middleware)
		waitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 3)
		s.stop()
	}
	reject(topic, topic+".dlq")
	reject(topic+".dlq", topic+".dlq2")
	reject(topic+".dlq2", topic+".dlq3")
	first, last := letters(t, topic+".dlq", 0, 3), letters(t, topic+".dlq3", 0, 3)
	for _, all := range [][]*sarama.ConsumerMessage{first, last} { // of different keys, they come in any order
		slices.SortFunc(all, func(a, b *sarama.ConsumerMessage) int {
			return cmp.Compare(headers(a)[ackpolicy.HeaderOffset], headers(b)[ackpolicy.HeaderOffset])
		})
	}
	for i := range 3 {
		a, b := headers(first[i]), headers(last[i])
		if len(a) != len(b) || b[ackpolicy.HeaderTopic] != topic || b[ackpolicy.HeaderOffset] != fmt.Sprint(i) || b[ackpolicy.HeaderRejections] != "3" {
			t.Errorf("letter %d grew or lost its origin: %v, then %v", i, a, b)
		}
	}
	if r := last[0]; r.Value != nil || string(r.Key) != "tombstone" {
		t.Errorf("the tombstone is %q: %q", r.Key, r.Value)
	}
	if r := last[1]; r.Key != nil {
		t.Errorf("the record without a key has %q", r.Key)
	}
	if r := last[2]; r.Key == nil || len(r.Key) != 0 {
		t.Errorf("the empty key is %v", r.Key)
	}
}

// Under another profile, what HeadersAckpolicy wrote earlier is the record's own, the count included.
func TestLetterOfAnotherProfile(t *testing.T) {
	t.Parallel()
	own := map[string]string{ackpolicy.HeaderTopic: "first", ackpolicy.HeaderOffset: "7", ackpolicy.HeaderRejections: "2"}
	record := brokertest.Record{Value: []byte("x")}
	for key, value := range own {
		record.Headers = append(record.Headers, sarama.RecordHeader{Key: []byte(key), Value: []byte(value)})
	}
	topic := newTopic(t, 1, record)
	cfg := config(brokertest.Group(t))
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}, Headers: ackpolicy.HeadersSpring}
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return ackpolicy.RejectWith(errPoison) },
		ackpolicy.NackOnError.Middleware)
	waitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 1)
	s.stop()
	got := headers(letters(t, topic+".dlq", 0, 1)[0])
	for key, want := range own {
		if got[key] != want {
			t.Errorf("header %s: got %q, want %q", key, got[key], want)
		}
	}
	if got["kafka_dlt-original-topic"] != topic {
		t.Errorf("origin: got %q, want %q", got["kafka_dlt-original-topic"], topic)
	}
}

func TestDeadLetterTopicIsChecked(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 1)
	cfg := config(brokertest.Group(t))
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{}
	sub := newSubscriber(t, cfg, newLog(t))
	_, err := sub.Subscribe(t.Context(), topic)
	if err == nil || !strings.Contains(err.Error(), topic+".dlq") || !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		t.Errorf("Subscribe without the topic: %v", err)
	}
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Topic: func(origin string) string { return origin }}
	sub = newSubscriber(t, cfg, newLog(t))
	if _, err := sub.Subscribe(t.Context(), topic); err == nil {
		t.Error("letters may go to the topic itself")
	}
}

// A dead letter broker that accepts and says nothing holds up neither Subscribe,
// once its context ends, nor Close. The record is left to the next owner.
func TestSilentDeadLetterBroker(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 1, numbered(2)...)
	var network brokertest.Network
	cfg := config(brokertest.Group(t), drainTimeout(200*time.Millisecond))
	letters := *cfg.Kafka.OverwriteSaramaConfig
	letters.Net.ReadTimeout = 2 * patience
	network.Use(&letters)
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}, Config: &letters}
	s := consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			network.Delay(time.Hour)
			return ackpolicy.ErrReject
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, 2)
	ended := make(chan struct{})
	go func() {
		s.stop()
		close(ended)
	}()
	await(t, "the end of Close", ended)
	wantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 1)

	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	sub := newSubscriber(t, cfg, newLog(t))
	go func() {
		_, err := sub.Subscribe(ctx, topic)
		failed <- err
	}()
	eventually(t, "a connection", func() bool { return network.OpenConns() > 0 })
	cancel()
	if err := await(t, "the end of Subscribe", failed); !errors.Is(err, context.Canceled) {
		t.Errorf("Subscribe: %v", err)
	}
}
