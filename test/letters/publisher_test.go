package letters_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// published keeps what a Watermill publisher was given.
type published struct {
	topics []string
	msgs   []*message.Message
}

func (p *published) Publish(topic string, msgs ...*message.Message) error {
	p.topics, p.msgs = append(p.topics, topic), append(p.msgs, msgs...)
	return nil
}

func (*published) Close() error { return nil }

func TestDeadLetterPublisher(t *testing.T) {
	t.Parallel()
	stamp := testkit.AnHourAgo()
	topic := testkit.NewTopic(t, 1, brokertest.Record{Value: []byte("before it")}, brokertest.Record{Key: []byte("k"), Value: []byte("x"), Timestamp: stamp})
	out := &published{}
	cfg := testkit.Config(brokertest.Group(t))
	cfg.DeadLetter = ackpolicy.DeadLetterPublisher{Publisher: out}
	s := testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return nil
		}
		return ackpolicy.RejectWith(testkit.ErrPoison)
	}, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 2)
	s.Stop()
	if !slices.Equal(out.topics, []string{topic + ".dlq"}) || string(out.msgs[0].Payload) != "x" {
		t.Fatalf("published %v", out)
	}
	for key, want := range map[string]string{
		"reason_poisoned": "poison", "topic_poisoned": topic, "handler_poisoned": "handler", "subscriber_poisoned": "kafka.Subscriber",
	} {
		if got := out.msgs[0].Metadata.Get(key); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
	ctx := out.msgs[0].Context() // what a partitioning marshaler goes by
	key, _ := kafka.MessageKeyFromCtx(ctx)
	partition, okPartition := kafka.MessagePartitionFromCtx(ctx)
	offset, _ := kafka.MessagePartitionOffsetFromCtx(ctx)
	at, _ := kafka.MessageTimestampFromCtx(ctx)
	if string(key) != "k" || !okPartition || partition != 0 || offset != 1 || !at.Equal(stamp) {
		t.Errorf("the getters return key %q, partition %d (%v), offset %d, timestamp %v", key, partition, okPartition, offset, at)
	}
}

// inBatches is a publisher to which Kafka behaves as it does: a message that it refuses takes
// those down that go along with it.
type inBatches struct {
	mu      sync.Mutex
	flying  int
	wrong   int // of them
	gate    chan struct{}
	stored  int
	refused int
}

func (p *inBatches) Publish(_ string, msgs ...*message.Message) error {
	bad := strings.HasSuffix(string(msgs[0].Payload), "7")
	p.mu.Lock()
	p.flying++
	if bad {
		p.wrong++
	}
	p.mu.Unlock()
	<-p.gate // so that some are together
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() {
		p.flying--
		if bad {
			p.wrong--
		}
	}()
	if p.wrong > 0 {
		p.refused++
		return fmt.Errorf("cannot publish: %w", sarama.ErrInvalidTimestamp)
	}
	p.stored++
	return nil
}

func (*inBatches) Close() error { return nil }

// When Kafka refuses a batch because of one letter, only that letter counts as refused.
func TestDeadLetterPublisherTellsLettersApart(t *testing.T) {
	t.Parallel()
	const records = 100
	topic := testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	out := &inBatches{gate: make(chan struct{})}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for tick := time.NewTicker(time.Millisecond); ; <-tick.C {
			select {
			case out.gate <- struct{}{}:
			case <-done:
				tick.Stop()
				return
			}
		}
	}()
	cfg := testkit.Config(brokertest.Group(t), dead(ackpolicy.DeadLetterPublisher{Publisher: out}))
	cfg.OnUnstorable = ackpolicy.UnstorableGiveUp
	s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, records)
	s.Stop()
	out.mu.Lock()
	defer out.mu.Unlock()
	if out.stored != records*9/10 || out.refused <= records/10 {
		t.Errorf("%d letters are stored, %d were refused", out.stored, out.refused)
	}
	if lines := testkit.Containing(s.Log.At("error"), "is given up"); len(lines) != records/10 {
		t.Errorf("%d are given up", len(lines))
	}
}
