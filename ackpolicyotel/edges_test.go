package ackpolicyotel_test

import (
	"errors"
	"slices"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyotel"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func names(spans []sdktrace.ReadOnlySpan) (all []string) {
	for _, s := range spans {
		all = append(all, s.Name())
	}
	slices.Sort(all)
	return all
}

// A delivery that is not sampled has no span, and nor have its settlements, while metrics count it.
func TestNotSampled(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	s := newTraced(t, func(o *ackpolicyotel.Options) {
		o.TracerProvider = sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
	})
	cfg := testkit.Config(brokertest.Group(t))
	s.consume(t, topic, cfg, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			return ackpolicy.ErrReject
		}
		return nil
	})
	s.Start(t)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 3)
	s.Stop()
	if got := s.collect(t); got["ackpolicy.deliveries {message} ack"] != 2 || got["messaging.client.consumed.messages {message} process"] != 3 {
		t.Errorf("metrics: %v", got)
	}
	if n := len(s.recorder.Started()); n > 0 {
		t.Errorf("%d spans", n)
	}
}

// Acks have no spans by default, and none where no span of their delivery is known.
func TestWithoutSpansOfAcks(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	cfg := testkit.Config(brokertest.Group(t))
	handle := func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 && d.Attempt() == 1 {
			return ackpolicy.NackAfter(0)
		}
		return nil
	}
	s := newTraced(t)
	s.consume(t, topic, cfg, handle)
	s.Start(t)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 2)
	s.Stop()
	if got, want := names(s.recorder.Ended()), []string{"nack " + topic, "process " + topic, "process " + topic, "process " + topic}; !slices.Equal(got, want) {
		t.Errorf("spans: %v, want %v", got, want)
	}

	hooksOnly := newTraced(t, ackSpans)
	cfg = testkit.Config(brokertest.Group(t))
	cfg.Hooks = hooksOnly.telemetry.Hooks()
	plain := testkit.NewService(t)
	plain.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	plain.Router.AddConsumerHandler("orders", topic, testkit.NewSubscriber(t, cfg, plain.Log), plain.Recorded(handle))
	plain.Start(t)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 2)
	plain.Stop()
	if got := names(hooksOnly.recorder.Ended()); len(got) > 0 {
		t.Errorf("without the middleware: %v", got)
	}
}

// With Share, a record is traced if its producer's span is sampled, and where there is none by chance. What is not traced
// is measured, and what its handler returns has the producer's context.
func TestShare(t *testing.T) {
	t.Parallel()
	const sampled, notSampled = "00-01010101010101010101010101010101-0202020202020202-01", "00-01010101010101010101010101010101-0202020202020202-00"
	for _, c := range []struct {
		share       float64
		traceparent string
		spans       int
	}{
		{0, "", 1}, {1, "", 1}, {1e-300, "", 0},
		{1e-300, sampled, 1}, {1, notSampled, 0},
	} {
		s := newTraced(t, func(o *ackpolicyotel.Options) { o.Share = c.share })
		msg, next := message.NewMessage("1", nil), message.NewMessage("2", nil)
		if c.traceparent != "" {
			msg.Metadata.Set("traceparent", c.traceparent)
		}
		ackpolicytest.New(msg, ackpolicytest.Record{Topic: "orders"})
		_, err := s.telemetry.Middleware(func(*message.Message) ([]*message.Message, error) { return []*message.Message{next}, nil })(msg)
		testkit.Check(t, err)
		if n := len(s.recorder.Ended()); n != c.spans {
			t.Errorf("%+v: %d spans", c, n)
		}
		if got := next.Metadata.Get("traceparent"); c.spans == 0 && got != c.traceparent || c.spans > 0 && got == "" {
			t.Errorf("%+v: what was returned has %q", c, got)
		}
		if got := s.collect(t); got["messaging.client.consumed.messages {message} process"] != 1 {
			t.Errorf("%+v: metrics: %v", c, got)
		}
	}
}

// Hooks are called shortly after their events: a nack that is reported when the next delivery has begun is still below
// its own delivery.
func TestNackThatIsReportedLate(t *testing.T) {
	t.Parallel()
	s := newTraced(t)
	handle := s.telemetry.Middleware(func(*message.Message) ([]*message.Message, error) { return nil, nil })
	for attempt := 1; attempt <= 2; attempt++ {
		msg := message.NewMessage("1", nil)
		ackpolicytest.New(msg, ackpolicytest.Record{Topic: "orders", Attempt: attempt})
		_, err := handle(msg)
		testkit.Check(t, err)
	}
	s.telemetry.Hooks().Settled(ackpolicy.SettledEvent{Status: ackpolicy.Nacked, RecordRef: ackpolicy.RecordRef{
		PartitionRef: ackpolicy.PartitionRef{Group: "group", Topic: "orders"}, Attempt: 1,
	}})
	nack, first := s.span(t, "nack orders", 0), s.span(t, "process orders", 0)
	if nack.Parent().SpanID() != first.SpanContext().SpanID() {
		t.Errorf("below %v, want %v", nack.Parent().SpanID(), first.SpanContext().SpanID())
	}
}

type rude struct{}

func (rude) Error() string     { panic("no text") }
func (rude) ErrorType() string { panic("no type") }

// What comes with a record may be no UTF-8, with which an exporter drops a whole batch of spans; and the methods
// of a handler's error may panic. Neither changes what becomes of the record.
func TestTextOfOthers(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, brokertest.Record{Value: []byte("v"), Headers: []sarama.RecordHeader{{Key: []byte("_watermill_message_uuid"), Value: []byte("\xff\xfe")}}})
	s := newTraced(t, ackSpans)
	cfg := testkit.Config(brokertest.Group(t))
	cfg.Backoff = func(int, error) time.Duration { return time.Millisecond }
	s.consume(t, topic, cfg, func(_ *message.Message, d *ackpolicy.Delivery) error {
		switch d.Attempt() {
		case 1:
			return rude{}
		case 2:
			return errors.New("\xff")
		}
		return nil
	})
	s.Start(t)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 1)
	s.Stop()
	ended := s.recorder.Ended()
	if n := len(ended); n != 6 {
		t.Errorf("spans: %v", names(ended))
	}
	failed := 0
	for _, span := range ended {
		if span.Status().Code == codes.Error {
			failed++
		}
		texts := []string{span.Status().Description}
		for _, a := range span.Attributes() {
			texts = append(texts, a.Value.String())
		}
		for _, e := range span.Events() {
			for _, a := range e.Attributes {
				texts = append(texts, a.Value.String())
			}
		}
		for _, text := range texts {
			if !utf8.ValidString(text) {
				t.Errorf("%s has %q", span.Name(), text)
			}
		}
	}
	if failed != 4 {
		t.Errorf("%d spans have an error, want 4", failed)
	}
}

// Gauges of several Subscribers with the same group and topic are added up, until they are closed.
func TestGaugesOfSeveralSubscribers(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 2)
	testkit.Produce(t, topic, 0, testkit.Numbered(3)...)
	testkit.Produce(t, topic, 1, testkit.Numbered(4)...)
	s := newTraced(t)
	group := brokertest.Group(t)
	var subs []*ackpolicy.Subscriber
	for _, name := range []string{"first", "second"} {
		cfg := testkit.Config(group)
		cfg.Backoff = func(int, error) time.Duration { return time.Hour }
		sub := testkit.NewSubscriber(t, cfg, s.Log)
		_, err := s.telemetry.Observe(sub)
		testkit.Check(t, err)
		s.Router.AddConsumerHandler(name, topic, sub, s.Recorded(func(*message.Message, *ackpolicy.Delivery) error { return errors.New("boom") }))
		subs = append(subs, sub)
	}
	s.Start(t)
	testkit.Eventually(t, "the work of both", func() bool { return s.collect(t)["ackpolicy.work_lag {message} "] == 7 })
	s.Stop()
	for _, sub := range subs {
		testkit.Check(t, sub.Close())
	}
	if lag, ok := s.collect(t)["ackpolicy.work_lag {message} "]; ok {
		t.Errorf("closed Subscribers have a lag of %v", lag)
	}
}
