package ackpolicyotel

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Attributes that the conventions have no name for.
const (
	attemptKey = attribute.Key("ackpolicy.attempt")
	statusKey  = attribute.Key("ackpolicy.status") // acked, nacked or rejected
	linkKey    = attribute.Key("ackpolicy.link")   // producer, or previous_attempt
	keyHashKey = attribute.Key("ackpolicy.key_hash")
	letterKey  = attribute.Key("ackpolicy.letter") // stored, failed or given_up
	handlerKey = attribute.Key("ackpolicy.handler")
)

var _ message.HandlerMiddleware = (*Telemetry)(nil).Middleware

// Middleware is a Watermill middleware that begins a span for each delivery and puts it into
// the context of the message. Messages that the handler returns get the span's context into
// their metadata. Add it first, so that it is outermost. Messages of other subscribers pass
// it unchanged.
func (t *Telemetry) Middleware(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		d, ok := ackpolicy.FromMessage(msg)
		if !ok {
			return h(msg)
		}
		before := msg.Context()
		ctx, span := t.begin(before, msg, d)
		msg.SetContext(ctx)
		began, returned := time.Now(), false
		defer func() {
			msg.SetContext(before)
			kind := semconv.ErrorType(err)
			if !returned {
				kind, err = semconv.ErrorTypeKey.String("panic"), errPanic
			}
			if err != nil {
				span.SetAttributes(kind)
				span.RecordError(err)
				span.SetStatus(codes.Error, err.Error())
			}
			t.measures.processed(ctx, d, time.Since(began), kind, err != nil)
			span.End()
		}()
		produced, err = h(msg)
		returned = true
		for _, p := range produced {
			t.propagator.Inject(ctx, propagation.MapCarrier(p.Metadata))
		}
		return produced, err
	}
}

var errPanic = errors.New("the handler panicked")

// begin begins the span of a delivery.
func (t *Telemetry) begin(ctx context.Context, msg *message.Message, d *ackpolicy.Delivery) (context.Context, trace.Span) {
	at := record{d.Group(), d.Topic(), d.Partition(), d.Offset()}
	remote := t.propagator.Extract(context.Background(), propagation.MapCarrier(msg.Metadata))
	producer := trace.SpanContextFromContext(remote)
	options := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(
			semconv.MessagingSystemKafka, semconv.MessagingOperationTypeProcess, semconv.MessagingOperationName("process"),
			semconv.MessagingDestinationName(at.topic), semconv.MessagingDestinationPartitionID(strconv.Itoa(int(at.partition))),
			semconv.MessagingKafkaOffset(int(at.offset)), semconv.MessagingConsumerGroupName(at.group),
			semconv.MessagingMessageBodySize(len(msg.Payload)),
			attemptKey.Int(d.Attempt()),
		),
	}
	if msg.UUID != "" {
		options = append(options, trace.WithAttributes(semconv.MessagingMessageID(msg.UUID)))
	}
	parent := ctx
	if producer.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: producer, Attributes: []attribute.KeyValue{linkKey.String("producer")}}))
		if !t.newTraces && !trace.SpanContextFromContext(ctx).IsValid() {
			parent = t.propagator.Extract(ctx, propagation.MapCarrier(msg.Metadata))
		}
	}
	if t.newTraces {
		options = append(options, trace.WithNewRoot())
	}
	ctx, span := t.tracer.Start(parent, "process "+at.topic, options...)
	if previous := t.spans.begin(at, handed{d.Attempt(), span.SpanContext()}); previous.IsValid() {
		span.AddLink(trace.Link{SpanContext: previous, Attributes: []attribute.KeyValue{linkKey.String("previous_attempt")}})
	}
	return ctx, span
}
