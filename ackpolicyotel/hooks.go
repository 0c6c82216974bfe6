package ackpolicyotel

import (
	"context"
	"strconv"

	"github.com/IBM/sarama"
	"go.opentelemetry.io/otel/attribute"
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
		Revoked: func(e ackpolicy.RevokedEvent) { t.places.release(partitionOf(e.PartitionRef)) },
	}
}

func (t *Telemetry) settled(e ackpolicy.SettledEvent) {
	p, o := t.places.at(partitionOf(e.PartitionRef)), operationOf[e.Status]
	p.counts[o].n.Add(1)
	h, ok := p.find(e.Offset, e.Attempt, e.Status == ackpolicy.Acked || e.Status == ackpolicy.Rejected && !e.Letter)
	switch {
	case !ok && e.Status != ackpolicy.Rejected: // Middleware has not seen it: an ack without the delivery says nothing
		return
	case e.Status == ackpolicy.Acked && !t.ackSpans:
		return
	}
	t.child(p, o, h, e.RecordRef, statusKey.String(e.Status.String()), e.Reason)
}

func (t *Telemetry) deadLettered(e ackpolicy.DeadLetteredEvent) {
	result := "failed"
	switch {
	case e.Err == nil:
		result = "stored"
	case e.GivenUp:
		result = "given_up"
	}
	p := t.places.at(partitionOf(e.PartitionRef))
	h, _ := p.find(e.Offset, e.Attempt, result != "failed")
	t.child(p, letter, h, e.RecordRef, letterKey.String(result), e.Err)
}

// child records a span below that of the record's latest delivery, h, which may not be known.
func (t *Telemetry) child(p *place, o operation, h handed, at ackpolicy.RecordRef, result attribute.KeyValue, err error) {
	ctx := context.Background()
	if h.span.IsValid() {
		if !h.span.IsSampled() { // nor is its child
			return
		}
		ctx = trace.ContextWithSpanContext(ctx, h.span)
	}
	_, span := t.tracer.Start(ctx, p.names[o], p.options[o]...)
	if !span.IsRecording() {
		return
	}
	span.SetAttributes( // at once: each call copies those before
		semconv.MessagingKafkaOffset(int(at.Offset)), attemptKey.Int(at.Attempt), handlerKey.String(valid(at.Handler)),
		keyHashKey.String(strconv.FormatUint(at.KeyHash, 16)), result,
	)
	fail(span, err)
	span.End()
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
		h, ok := t.places.at(partition{l.Group, l.Topic, l.Partition}).find(l.Offset, l.Attempts, false)
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
