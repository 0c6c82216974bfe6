package subscriber_test

import (
	"sync/atomic"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// scribbler is a tracer that writes into each record's headers, as tracers do.
type scribbler struct {
	kafka.SaramaTracer
	records atomic.Int32
}

func (s *scribbler) WrapConsumerGroupHandler(h sarama.ConsumerGroupHandler) sarama.ConsumerGroupHandler {
	return scribblingHandler{s.SaramaTracer.WrapConsumerGroupHandler(h), s}
}

type scribblingHandler struct {
	sarama.ConsumerGroupHandler
	s *scribbler
}

func (h scribblingHandler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	out := make(chan *sarama.ConsumerMessage)
	go func() {
		defer close(out)
		for m := range claim.Messages() {
			h.s.records.Add(1)
			m.Headers = append(m.Headers, &sarama.RecordHeader{Key: []byte("scribble"), Value: []byte("x")})
			out <- m
		}
	}()
	return h.ConsumerGroupHandler.ConsumeClaim(session, scribbledClaim{claim, out})
}

type scribbledClaim struct {
	sarama.ConsumerGroupClaim
	out chan *sarama.ConsumerMessage
}

func (c scribbledClaim) Messages() <-chan *sarama.ConsumerMessage { return c.out }

// A tracer sees every record, its goroutines end with the claim, and what it
// writes reaches the handler, but not a dead letter.
func TestTracer(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 2)
	testkit.Produce(t, topic, 0, testkit.Numbered(20)...)
	testkit.Produce(t, topic, 1, testkit.Numbered(20)...)
	tracer := &scribbler{SaramaTracer: kafka.NewOTELSaramaTracer()}
	cfg := testkit.Config(group, testkit.DeadLetterTopic)
	cfg.Kafka.Tracer = tracer
	s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if msg.Metadata.Get("scribble") != "x" {
			t.Errorf("%s: the tracer's header is missing", testkit.Name(d))
		}
		if d.Offset() == 3 && d.Partition() == 1 {
			return ackpolicy.RejectWith(testkit.ErrPoison)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 20)
	testkit.WaitCommitted(t, group, topic, 1, 20)
	s.Stop()
	if n := tracer.records.Load(); n < 40 {
		t.Errorf("the tracer saw %d records", n)
	}
	if h := testkit.Headers(testkit.Letters(t, topic+".dlq", 1, 1)[0]); h["scribble"] != "" {
		t.Error("the letter carries what the tracer wrote")
	}
}

// OTELEnabled, which is deprecated there, does what it does in watermill-kafka;
// without a group too.
func TestOTELWithoutAGroup(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(5)...)
	cfg := testkit.Config("")
	cfg.Kafka.OTELEnabled = true //lint:ignore SA1019 an application that moves over may still set it
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 5)
	s.Stop()
}

// keeper is a tracer that keeps the first claim from us.
type keeper struct {
	kafka.SaramaTracer
	kept atomic.Int32 // its partition, counted from 1
}

func (k *keeper) WrapConsumerGroupHandler(h sarama.ConsumerGroupHandler) sarama.ConsumerGroupHandler {
	return keepingHandler{h, k}
}

type keepingHandler struct {
	sarama.ConsumerGroupHandler
	k *keeper
}

func (h keepingHandler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	if h.k.kept.CompareAndSwap(0, claim.Partition()+1) {
		<-session.Context().Done()
		return nil
	}
	return h.ConsumerGroupHandler.ConsumeClaim(session, claim)
}

// A claim that a tracer keeps for itself does not delay the broker's other partitions.
func TestTracerThatKeepsAClaim(t *testing.T) {
	t.Parallel()
	const partitions = 3
	group, topic := brokertest.Group(t), testkit.NewTopic(t, partitions)
	for p := range int32(partitions) {
		testkit.Produce(t, topic, p, testkit.Numbered(3)...)
	}
	tracer := &keeper{SaramaTracer: kafka.NewOTELSaramaTracer()}
	cfg := testkit.Config(group)
	cfg.Kafka.Tracer = tracer
	testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "the first claim", func() bool { return tracer.kept.Load() > 0 })
	for p := range int32(partitions) {
		if p != tracer.kept.Load()-1 {
			testkit.WaitCommitted(t, group, topic, p, 3)
		}
	}
}
