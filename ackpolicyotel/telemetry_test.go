package ackpolicyotel_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyotel"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// traced is a service with telemetry.
type traced struct {
	*testkit.Service
	telemetry *ackpolicyotel.Telemetry
	recorder  *tracetest.SpanRecorder
	reader    *sdkmetric.ManualReader
}

func newTraced(t *testing.T, set ...func(*ackpolicyotel.Options)) *traced {
	s := &traced{testkit.NewService(t), nil, tracetest.NewSpanRecorder(), sdkmetric.NewManualReader()}
	o := ackpolicyotel.Options{
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(s.recorder)),
		MeterProvider:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(s.reader)),
		Propagator:     propagation.TraceContext{},
	}
	for _, f := range set {
		f(&o)
	}
	telemetry, err := ackpolicyotel.New(o)
	testkit.Check(t, err)
	s.telemetry = telemetry
	s.Router.AddMiddleware(telemetry.Middleware, ackpolicy.NackOnError.Middleware)
	return s
}

func ackSpans(o *ackpolicyotel.Options) { o.AckSpans = true }

func (s *traced) consume(t *testing.T, topic string, cfg ackpolicy.SubscriberConfig, h testkit.Handle) *ackpolicy.Subscriber {
	cfg.Hooks = ackpolicy.JoinHooks(cfg.Hooks, s.telemetry.Hooks())
	sub := testkit.NewSubscriber(t, cfg, s.Log)
	s.Router.AddConsumerHandler("orders", topic, sub, s.Recorded(h))
	return sub
}

// span waits for the n-th ended span of a name, from 0 on.
func (s *traced) span(t *testing.T, name string, n int) (found sdktrace.ReadOnlySpan) {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("span %s, number %d", name, n), func() bool {
		left := n
		for _, span := range s.recorder.Ended() {
			if span.Name() != name {
				continue
			}
			if left == 0 {
				found = span
				return true
			}
			left--
		}
		return false
	})
	return found
}

func attributeOf(s sdktrace.ReadOnlySpan, key attribute.Key) string {
	for _, a := range s.Attributes() {
		if a.Key == key {
			return a.Value.String()
		}
	}
	return ""
}

// links returns the linked spans by what ackpolicy.link says.
func links(s sdktrace.ReadOnlySpan) map[string]trace.SpanID {
	all := map[string]trace.SpanID{}
	for _, l := range s.Links() {
		for _, a := range l.Attributes {
			all[a.Value.String()] = l.SpanContext.SpanID()
		}
	}
	return all
}

// produced is a span of somebody who produces records.
func produced(n byte) (of trace.SpanContext, header sarama.RecordHeader) {
	of = trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1, n}, SpanID: trace.SpanID{2, n}, TraceFlags: trace.FlagsSampled, Remote: true})
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(context.Background(), of), carrier)
	return of, sarama.RecordHeader{Key: []byte("traceparent"), Value: []byte(carrier["traceparent"])}
}

// A trace continues through a redelivery and a dead letter: each delivery is a child of the
// producer's span with a link to the delivery before, settlements are children of their
// deliveries, and who reads the letter is a child of the delivery that was rejected.
func TestTraceThroughRedeliveryAndLetter(t *testing.T) {
	t.Parallel()
	producer, header := produced(1)
	topic := testkit.NewTopic(t, 1, brokertest.Record{Key: []byte("k"), Value: []byte("v"), Headers: []sarama.RecordHeader{header}})
	s := newTraced(t)
	cfg := testkit.Config(brokertest.Group(t))
	cfg.Backoff = func(int, error) time.Duration { return time.Millisecond }
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}, Headers: s.telemetry.Headers(nil)}
	boom := errors.New("boom")
	s.consume(t, topic, cfg, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() == 1 {
			return boom
		}
		return ackpolicy.RejectWith(boom)
	})
	s.Start(t)
	first, second := s.span(t, "process "+topic, 0), s.span(t, "process "+topic, 1)
	nack, reject, stored := s.span(t, "nack "+topic, 0), s.span(t, "reject "+topic, 0), s.span(t, "dead_letter "+topic, 0)
	for _, c := range []struct {
		child  sdktrace.ReadOnlySpan
		parent trace.SpanID
	}{
		{first, producer.SpanID()}, {second, producer.SpanID()},
		{nack, first.SpanContext().SpanID()}, {reject, second.SpanContext().SpanID()}, {stored, second.SpanContext().SpanID()},
	} {
		if c.child.SpanContext().TraceID() != producer.TraceID() || c.child.Parent().SpanID() != c.parent {
			t.Errorf("%s: in trace %v below %v, want %v below %v", c.child.Name(), c.child.SpanContext().TraceID(), c.child.Parent().SpanID(), producer.TraceID(), c.parent)
		}
	}
	if l := links(first); len(l) != 1 || l["producer"] != producer.SpanID() {
		t.Errorf("links of the first delivery: %v", l)
	}
	if l := links(second); len(l) != 2 || l["producer"] != producer.SpanID() || l["previous_attempt"] != first.SpanContext().SpanID() {
		t.Errorf("links of the second delivery: %v", l)
	}
	if first.Status().Code != codes.Error || attributeOf(first, "error.type") != "*errors.errorString" || second.Status().Code == codes.Error {
		t.Errorf("status of the deliveries: %v, %v", first.Status(), second.Status())
	}
	for key, want := range map[attribute.Key]string{
		"messaging.system": "kafka", "messaging.destination.name": topic, "messaging.destination.partition.id": "0", "messaging.kafka.offset": "0",
		"messaging.consumer.group.name": cfg.Kafka.ConsumerGroup, "messaging.operation.name": "process", "messaging.operation.type": "process", "ackpolicy.attempt": "2",
	} {
		if got := attributeOf(second, key); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
	if attributeOf(reject, "ackpolicy.status") != "rejected" || attributeOf(stored, "ackpolicy.letter") != "stored" || attributeOf(reject, "messaging.operation.type") != "settle" {
		t.Errorf("%v, %v", reject.Attributes(), stored.Attributes())
	}
	s.Stop()

	reader := newTraced(t)
	reader.consume(t, topic+".dlq", testkit.Config(brokertest.Group(t)), testkit.Succeed)
	reader.Start(t)
	letter := reader.span(t, "process "+topic+".dlq", 0)
	if letter.SpanContext().TraceID() != producer.TraceID() || letter.Parent().SpanID() != second.SpanContext().SpanID() {
		t.Errorf("the letter is read in trace %v below %v", letter.SpanContext().TraceID(), letter.Parent().SpanID())
	}
	reader.Stop()
}

// A record that was pushed out of memory and read again continues its trace, too.
func TestTraceThroughAReadAgain(t *testing.T) {
	t.Parallel()
	const records = 300
	all := testkit.Bulky(records, records)
	for i := range all {
		_, header := produced(byte(i))
		all[i].Headers = []sarama.RecordHeader{header}
	}
	topic := testkit.NewTopic(t, 1, all...)
	s := newTraced(t, ackSpans)
	cfg := testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.Unordered, 16))
	cfg.MaxBufferedBytes = testkit.MiB
	cfg.Backoff = func(int, error) time.Duration { return time.Hour }
	sub := s.consume(t, topic, cfg, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() == 1 {
			return errors.New("boom")
		}
		return nil
	})
	s.Start(t)
	var held []ackpolicy.RecordState
	testkit.Eventually(t, "all records to wait, and some to be out of memory", func() bool {
		held, _, _ = sub.Window(topic, 0, records)
		out := slices.IndexFunc(held, func(r ackpolicy.RecordState) bool { return r.Status == ackpolicy.RecordParked && r.Key == nil })
		if out < 0 || len(held) < records {
			return false
		}
		held = held[out:]
		return true
	})
	offset := held[0].Offset
	testkit.Check(t, sub.Retry("test", topic, 0, offset))
	ack := s.span(t, "ack "+topic, 0)
	var again sdktrace.ReadOnlySpan
	testkit.Eventually(t, "the span of the second delivery", func() bool {
		ended := s.recorder.Ended()
		i := slices.IndexFunc(ended, func(span sdktrace.ReadOnlySpan) bool {
			return attributeOf(span, "ackpolicy.attempt") == "2" && span.Name() == "process "+topic
		})
		if i >= 0 {
			again = ended[i]
		}
		return i >= 0
	})
	producer, _ := produced(byte(offset))
	if again.SpanContext().TraceID() != producer.TraceID() || again.Parent().SpanID() != producer.SpanID() || links(again)["previous_attempt"] == (trace.SpanID{}) {
		t.Errorf("the second delivery is in trace %v below %v, with links %v", again.SpanContext().TraceID(), again.Parent().SpanID(), links(again))
	}
	if ack.Parent().SpanID() != again.SpanContext().SpanID() {
		t.Errorf("the ack is below %v", ack.Parent().SpanID())
	}
	s.Stop()
}

// The handler's context has the span, and what the handler returns has its context. NewTraces begins a
// trace, with a link to the producer's.
func TestContextOfHandlersAndTheirMessages(t *testing.T) {
	t.Parallel()
	producer, header := produced(1)
	topic := testkit.NewTopic(t, 1, brokertest.Record{Value: []byte("v"), Headers: []sarama.RecordHeader{header}})
	s := newTraced(t, func(o *ackpolicyotel.Options) { o.NewTraces = true })
	cfg := testkit.Config(brokertest.Group(t))
	cfg.Hooks = s.telemetry.Hooks()
	var inside trace.SpanContext
	published := make(chan *message.Message, 1)
	s.Router.AddHandler("orders", topic, testkit.NewSubscriber(t, cfg, s.Log), "out", publisher(published), func(msg *message.Message) ([]*message.Message, error) {
		inside = trace.SpanContextFromContext(msg.Context())
		return []*message.Message{message.NewMessage("", nil)}, nil
	})
	s.Start(t)
	out := testkit.Await(t, "the message", published)
	span := s.span(t, "process "+topic, 0)
	if span.SpanContext().TraceID() == producer.TraceID() || span.Parent().IsValid() || links(span)["producer"] != producer.SpanID() {
		t.Errorf("trace %v, parent %v, links %v", span.SpanContext().TraceID(), span.Parent(), links(span))
	}
	context := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier(out.Metadata)))
	if inside.SpanID() != span.SpanContext().SpanID() || context.SpanID() != inside.SpanID() {
		t.Errorf("in the handler %v, in what it returned %v, want %v", inside.SpanID(), context.SpanID(), span.SpanContext().SpanID())
	}
	s.Stop()
}

type publisher chan *message.Message

func (p publisher) Publish(_ string, messages ...*message.Message) error {
	for _, m := range messages {
		p <- m
	}
	return nil
}

func (publisher) Close() error { return nil }

// Metrics have the names, units and attributes of the conventions.
func TestMetricsOfTheConventions(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	s := newTraced(t, ackSpans)
	cfg := testkit.Config(brokertest.Group(t))
	sub := s.consume(t, topic, cfg, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			return ackpolicy.ErrReject
		}
		return nil
	})
	stop, err := s.telemetry.Observe(sub)
	testkit.Check(t, err)
	s.Start(t)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 3)
	s.span(t, "ack "+topic, 1)
	var got map[string]float64
	testkit.Eventually(t, "the metrics of a commit", func() bool {
		got = s.collect(t)
		return got["messaging.client.operation.duration s commit"] > 0
	})
	for name, want := range map[string]float64{
		"messaging.process.duration s process": 3, "messaging.client.consumed.messages {message} process": 3,
		"ackpolicy.deliveries {message} ack": 2, "ackpolicy.deliveries {message} reject": 1, "ackpolicy.work_lag {message} ": 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s: %v (there: %v), want %v", name, v, ok, want)
		}
	}
	testkit.Check(t, stop())
	s.Stop()
}

// collect returns all metrics by name, unit and operation.
func (s *traced) collect(t *testing.T) map[string]float64 {
	var all metricdata.ResourceMetrics
	testkit.Check(t, s.reader.Collect(t.Context(), &all))
	got := map[string]float64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			read(got, m)
		}
	}
	return got
}

// read adds up a metric by its operation.
func read(into map[string]float64, m metricdata.Metrics) {
	add := func(set attribute.Set, v float64) {
		operation, _ := set.Value("messaging.operation.name")
		into[m.Name+" "+m.Unit+" "+operation.AsString()] += v
	}
	switch data := m.Data.(type) {
	case metricdata.Histogram[float64]:
		for _, p := range data.DataPoints {
			add(p.Attributes, float64(p.Count))
		}
	case metricdata.Sum[int64]:
		for _, p := range data.DataPoints {
			add(p.Attributes, float64(p.Value))
		}
	case metricdata.Gauge[int64]:
		for _, p := range data.DataPoints {
			add(p.Attributes, float64(p.Value))
		}
	}
}
