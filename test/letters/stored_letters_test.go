package letters_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A poison record costs MaxDeliveries deliveries and one letter; those behind it are delivered.
func TestPoisonBecomesALetter(t *testing.T) {
	t.Parallel()
	stamp := testkit.AnHourAgo()
	poison := brokertest.Record{
		Key: []byte("k"), Value: []byte("\x00not utf8\xff"), Timestamp: stamp,
		Headers: []sarama.RecordHeader{{Key: []byte("h"), Value: []byte("\xfe")}, {Key: []byte("h"), Value: nil}},
	}
	topic := testkit.NewTopic(t, 3)
	testkit.Produce(t, topic, 2, poison)
	testkit.Produce(t, topic, 2, testkit.Numbered(2)...)
	cfg := testkit.Config(brokertest.Group(t), testkit.DeadLetterTopic)
	cfg.MaxDeliveries = 5
	s := testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return fmt.Errorf("cannot charge: %w", testkit.ErrPoison)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 2, 3)
	s.Stop()
	s.Want(t, "0#1", "0#2", "0#3", "0#4", "0#5", "1#1", "2#1")
	testkit.WantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 2, 3)

	letter := testkit.Letters(t, topic+".dlq", 2, 1)[0]
	if !bytes.Equal(letter.Key, poison.Key) || !bytes.Equal(letter.Value, poison.Value) || !letter.Timestamp.Equal(stamp) {
		t.Errorf("the letter is not the record: key %q, value %q, timestamp %v", letter.Key, letter.Value, letter.Timestamp)
	}
	if h := letter.Headers[:2]; string(h[0].Value) != "\xfe" || h[1].Value != nil {
		t.Errorf("the record's own headers changed: %v", h)
	}
	got := testkit.Headers(letter)
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

func rejectSecond(_ *message.Message, d *ackpolicy.Delivery) error {
	if d.Offset() == 1 {
		return ackpolicy.ErrReject
	}
	return nil
}

// While a letter cannot be stored nothing is committed past its record, others
// are delivered, and the letter is stored once that works again.
func TestLetterWaitsForItsTopic(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(5)...)
	dead := &testkit.Flaky{}
	dead.Down.Store(true)
	cfg := testkit.Config(brokertest.Group(t))
	cfg.DeadLetter = dead
	s := testkit.Consume(t, cfg, topic, rejectSecond, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 5)
	testkit.Eventually(t, "a second try", func() bool { return dead.Tried.Load() > 1 })
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 1)
	testkit.WantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 1)
	dead.Down.Store(false)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 5)
	s.Stop()
	if n := dead.Sent.Load(); n != 1 {
		t.Errorf("%d letters", n)
	}
	if len(testkit.Containing(s.Log.At("error"), "Dead letter not stored")) == 0 {
		t.Error("nothing was reported")
	}
}

// What cannot be stored before the drain ends is left to the next owner.
func TestLetterIsLeftToTheNextOwner(t *testing.T) {
	t.Parallel()
	topic, group := testkit.NewTopic(t, 1, testkit.Numbered(3)...), brokertest.Group(t)
	dead := &testkit.Flaky{}
	dead.Down.Store(true)
	for round := range 2 {
		cfg := testkit.Config(group, testkit.DrainTimeout(300*time.Millisecond))
		cfg.DeadLetter = dead
		s := testkit.Consume(t, cfg, topic, rejectSecond, ackpolicy.NackOnError.Middleware)
		s.Wait(t, 3-2*round) // the last record is settled, and does not come again
		if round == 1 {
			dead.Down.Store(false)
		}
		s.Stop()
		testkit.WantCommitted(t, group, topic, 0, []int64{1, 3}[round])
	}
	if n := dead.Sent.Load(); n != 1 {
		t.Errorf("%d letters", n)
	}
}

// A tombstone, a record without a key and one with an empty key stay what they are; a
// letter that is rejected again keeps its first origin and does not grow.
func TestLetterOfALetter(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, brokertest.Record{Key: []byte("tombstone")}, brokertest.Record{Value: []byte("no key")},
		brokertest.Record{Key: []byte{}, Value: []byte("empty key")})
	reject := func(topic, to string) {
		cfg := testkit.Config(brokertest.Group(t))
		cfg.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}, Topic: func(string) string { return to }}
		s := testkit.Consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error {
			return ackpolicy.RejectWith(testkit.ErrPoison)
		}, ackpolicy.NackOnError.Middleware)
		testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 3)
		s.Stop()
	}
	reject(topic, topic+".dlq")
	reject(topic+".dlq", topic+".dlq2")
	reject(topic+".dlq2", topic+".dlq3")
	first, last := testkit.Letters(t, topic+".dlq", 0, 3), testkit.Letters(t, topic+".dlq3", 0, 3)
	for _, all := range [][]*sarama.ConsumerMessage{first, last} { // of different keys, they come in any order
		slices.SortFunc(all, func(a, b *sarama.ConsumerMessage) int {
			return cmp.Compare(testkit.Headers(a)[ackpolicy.HeaderOffset], testkit.Headers(b)[ackpolicy.HeaderOffset])
		})
	}
	for i := range 3 {
		a, b := testkit.Headers(first[i]), testkit.Headers(last[i])
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
	topic := testkit.NewTopic(t, 1, record)
	cfg := testkit.Config(brokertest.Group(t))
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}, Headers: ackpolicy.HeadersSpring}
	s := testkit.Consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return ackpolicy.RejectWith(testkit.ErrPoison) },
		ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 1)
	s.Stop()
	got := testkit.Headers(testkit.Letters(t, topic+".dlq", 0, 1)[0])
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
	topic := testkit.NewTopic(t, 1)
	cfg := testkit.Config(brokertest.Group(t))
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{}
	sub := testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
	_, err := sub.Subscribe(t.Context(), topic)
	if err == nil || !strings.Contains(err.Error(), topic+".dlq") || !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
		t.Errorf("Subscribe without the topic: %v", err)
	}
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Topic: func(origin string) string { return origin }}
	sub = testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
	if _, err := sub.Subscribe(t.Context(), topic); err == nil {
		t.Error("letters may go to the topic itself")
	}
}

// A dead letter broker that accepts and says nothing delays neither Subscribe,
// once its context ends, nor Close. The record is left to the next owner.
func TestSilentDeadLetterBroker(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	var network brokertest.Network
	cfg := testkit.Config(brokertest.Group(t), testkit.DrainTimeout(200*time.Millisecond))
	letters := *cfg.Kafka.OverwriteSaramaConfig
	letters.Net.ReadTimeout = 2 * testkit.Patience
	network.Use(&letters)
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}, Config: &letters}
	s := testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			network.Delay(time.Hour)
			return ackpolicy.ErrReject
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 2)
	ended := make(chan struct{})
	go func() {
		s.Stop()
		close(ended)
	}()
	testkit.Await(t, "the end of Close", ended)
	testkit.WantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 1)

	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	sub := testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
	go func() {
		_, err := sub.Subscribe(ctx, topic)
		failed <- err
	}()
	testkit.Eventually(t, "a connection", func() bool { return network.OpenConns() > 0 })
	cancel()
	if err := testkit.Await(t, "the end of Subscribe", failed); !errors.Is(err, context.Canceled) {
		t.Errorf("Subscribe: %v", err)
	}
}
