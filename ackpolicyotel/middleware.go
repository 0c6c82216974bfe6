package ackpolicyotel

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Attributes that the conventions have no name for.
const (
	attemptKey = attribute.Key("ackpolicy.attempt") // of process: from the second delivery on
	statusKey  = attribute.Key("ackpolicy.status")  // acked, nacked or rejected
	linkKey    = attribute.Key("ackpolicy.link")    // producer, or previous_attempt
	keyHashKey = attribute.Key("ackpolicy.key_hash")
	letterKey  = attribute.Key("ackpolicy.letter") // stored, failed or given_up
	handlerKey = attribute.Key("ackpolicy.handler")
)

var _ message.HandlerMiddleware = (*Telemetry)(nil).Middleware

// Middleware is a Watermill middleware that begins a span for each delivery and puts it into
// the context of the message. Messages that the handler returns get the span's context into
// their metadata. Add it first, so that it is outermost. Messages of other subscribers pass
// it unchanged, and so do batches.
func (t *Telemetry) Middleware(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		before := msg.Context()
		d, ok := ackpolicy.FromContext(before)
		if !ok {
			return h(msg)
		}
		p := t.places.at(partition{d.Group(), d.Topic(), d.Partition()})
		ctx, span := t.begin(before, p, msg, d)
		msg.SetContext(ctx)
		began, returned := time.Now(), false
		defer func() {
			msg.SetContext(before)
			if !returned {
				err = errPanic
			}
			t.end(ctx, span, p, d, time.Since(began), err)
		}()
		produced, err = h(msg)
		returned = true
		for _, p := range produced {
			t.propagator.Inject(ctx, propagation.MapCarrier(p.Metadata))
		}
		return produced, err
	}
}

// growStack makes the stack as large as the SDK wants it, at once. The Router starts a goroutine for
// each message, and to double its stack again and again costs as much as a span that is not sampled.
//
//go:noinline
func growStack(i int) byte {
	var frame [5 << 10]byte
	return frame[i]
}

var errPanic = errors.New("the handler panicked")

// begin begins the span of a delivery.
func (t *Telemetry) begin(ctx context.Context, p *place, msg *message.Message, d *ackpolicy.Delivery) (context.Context, trace.Span) {
	parent, producer := t.producer(ctx, msg)
	if !t.selects(producer) {
		return parent, noSpan
	}
	growStack(0)
	options := p.options[process]
	if t.newTraces && producer.IsValid() { // a sampler may want to see it
		options = append(options[:len(options):len(options)], trace.WithLinks(linkTo(producer, toProducer)))
	}
	ctx, span := t.tracer.Start(parent, p.names[process], options...)
	previous := p.begin(d.Offset(), handed{attempt: d.Attempt(), span: span.SpanContext()})
	if !span.IsRecording() {
		return ctx, span
	}
	if !t.newTraces && producer.IsValid() {
		span.AddLink(linkTo(producer, toProducer))
	}
	if previous.IsValid() {
		span.AddLink(linkTo(previous, toPrevious))
	}
	of := append(make([]attribute.KeyValue, 0, 3), semconv.MessagingKafkaOffset(int(d.Offset())))
	if msg.UUID != "" {
		of = append(of, semconv.MessagingMessageID(valid(msg.UUID)))
	}
	if d.Attempt() > 1 { // a span of more than eight attributes takes the SDK much longer
		of = append(of, attemptKey.Int(d.Attempt()))
	}
	span.SetAttributes(of...) // at once: each call copies those before
	return ctx, span
}

var noSpan = trace.SpanFromContext(context.Background())

// selects reports whether a delivery may be traced.
func (t *Telemetry) selects(producer trace.SpanContext) bool {
	switch {
	case t.share <= 0:
		return true
	case producer.IsValid() && !t.newTraces:
		return producer.IsSampled()
	}
	return rand.Float64() < t.share
}

// producer returns the span that produced the record, if it is in the record's headers, and the
// context of which the delivery's span is a child: the producer's, unless the Subscriber's has a
// span.
func (t *Telemetry) producer(ctx context.Context, msg *message.Message) (parent context.Context, producer trace.SpanContext) {
	remote := t.propagator.Extract(context.Background(), propagation.MapCarrier(msg.Metadata))
	if remote == context.Background() { // a context has many layers: it is only searched for a reason
		return ctx, producer
	}
	if t.newTraces || !trace.SpanContextFromContext(ctx).IsValid() {
		ctx = t.propagator.Extract(ctx, propagation.MapCarrier(msg.Metadata))
	}
	return ctx, trace.SpanContextFromContext(remote)
}

// end ends the span of a delivery whose handlers have returned, and measures it.
func (t *Telemetry) end(ctx context.Context, span trace.Span, p *place, d *ackpolicy.Delivery, took time.Duration, err error) {
	of := p.counts[process]
	if err != nil {
		kind, text := "panic", errPanic.Error()
		if err != errPanic {
			kind, text = typeOf(err), textOf(err)
		}
		of = t.measures.at(seriesOf{group: d.Group(), topic: d.Topic(), operation: operationNames[process], class: processes, errorType: kind})
		if span.IsRecording() {
			span.AddEvent("exception", trace.WithAttributes(semconv.ExceptionType(kind), semconv.ExceptionMessage(text)))
			failAs(span, kind, text)
		}
	}
	t.measures.process.Record(ctx, took.Seconds(), of.record...)
	of.n.Add(1)
	span.End()
}
