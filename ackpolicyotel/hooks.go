package ackpolicyotel

import (
	"context"
	"strconv"

	"github.com/IBM/sarama"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Hooks returns the hooks that end the story of a delivery: how it was settled, and whether
// its dead letter was stored; and that measure commits. They belong into the configuration of
// each Subscriber, joined with other hooks by ackpolicy.JoinHooks.
func (t *Telemetry) Hooks() ackpolicy.Hooks {
	return ackpolicy.Hooks{
		Settled:      t.settled,
		DeadLettered: t.deadLettered,
		Committed: func(e ackpolicy.CommittedEvent) {
			t.measures.committed(e.PartitionRef, e.Duration, nil)
		},
		CommitFailed: func(e ackpolicy.CommitFailedEvent) {
			t.measures.committed(e.PartitionRef, e.Duration, e.Err)
		},
		Revoked: func(e ackpolicy.RevokedEvent) { t.spans.release(e.PartitionRef) },
	}
}

var operations = map[ackpolicy.Status]string{ackpolicy.Acked: "ack", ackpolicy.Nacked: "nack", ackpolicy.Rejected: "reject"}

func (t *Telemetry) settled(e ackpolicy.SettledEvent) {
	t.measures.settled(e)
	span := t.child(e.RecordRef, operations[e.Status], trace.SpanKindClient, semconv.MessagingOperationTypeSettle)
	span.SetAttributes(statusKey.String(e.Status.String()))
	fail(span, e.Reason)
	span.End()
	if e.Status == ackpolicy.Acked {
		t.spans.forget(recordOf(e.RecordRef))
	}
}

func (t *Telemetry) deadLettered(e ackpolicy.DeadLetteredEvent) {
	result := "failed"
	switch {
	case e.Err == nil:
		result = "stored"
	case e.GivenUp:
		result = "given_up"
	}
	span := t.child(e.RecordRef, "dead_letter", trace.SpanKindProducer, semconv.MessagingOperationTypeSend)
	span.SetAttributes(letterKey.String(result))
	fail(span, e.Err)
	span.End()
	if result != "failed" {
		t.spans.forget(recordOf(e.RecordRef))
	}
}

func fail(span trace.Span, err error) {
	if err == nil {
		return
	}
	span.SetAttributes(semconv.ErrorType(err))
	span.SetStatus(codes.Error, err.Error())
}

// child begins a span below that of the record's latest delivery.
func (t *Telemetry) child(at ackpolicy.RecordRef, operation string, kind trace.SpanKind, class attribute.KeyValue) trace.Span {
	ctx := context.Background()
	if h, ok := t.spans.find(recordOf(at)); ok {
		if !h.span.IsSampled() { // nor is its child
			return trace.SpanFromContext(ctx)
		}
		ctx = trace.ContextWithSpanContext(ctx, h.span)
	}
	_, span := t.tracer.Start(ctx, operation+" "+at.Topic, trace.WithSpanKind(kind), trace.WithAttributes(
		semconv.MessagingSystemKafka, class, semconv.MessagingOperationName(operation),
		semconv.MessagingDestinationName(at.Topic), semconv.MessagingDestinationPartitionID(strconv.Itoa(int(at.Partition))),
		semconv.MessagingKafkaOffset(int(at.Offset)), semconv.MessagingConsumerGroupName(at.Group),
		attemptKey.Int(at.Attempt), handlerKey.String(at.Handler), keyHashKey.String(strconv.FormatUint(at.KeyHash, 16)),
	))
	return span
}

// Headers returns DeadLetterTopic.Headers or DeadLetterPublisher.Headers that add the context
// of the rejected delivery to those of next: whoever reads the letter continues its trace. nil
// means ackpolicy.HeadersAckpolicy. Without it, a letter has the context that its record came with.
func (t *Telemetry) Headers(next func(ackpolicy.Letter) []sarama.RecordHeader) func(ackpolicy.Letter) []sarama.RecordHeader {
	if next == nil {
		next = ackpolicy.HeadersAckpolicy
	}
	return func(l ackpolicy.Letter) []sarama.RecordHeader {
		headers := next(l)
		h, ok := t.spans.find(record{l.Group, l.Topic, l.Partition, l.Offset})
		if !ok {
			return headers
		}
		carrier := propagation.MapCarrier{}
		t.propagator.Inject(trace.ContextWithSpanContext(context.Background(), h.span), carrier)
		for key, value := range carrier {
			headers = append(headers, sarama.RecordHeader{Key: []byte(key), Value: []byte(value)})
		}
		return headers
	}
}
