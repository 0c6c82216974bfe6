// Package ackpolicyotel traces and measures ackpolicy's Subscribers with OpenTelemetry, by
// the semantic conventions for messaging.
//
//	telemetry, err := ackpolicyotel.New(ackpolicyotel.Options{})
//	config.Hooks = ackpolicy.JoinHooks(config.Hooks, telemetry.Hooks())
//	config.DeadLetter = ackpolicy.DeadLetterTopic{Headers: telemetry.Headers(nil)}
//	...
//	router.AddMiddleware(telemetry.Middleware) // the first one: outermost
//
// A span "process TOPIC" lasts as long as the handlers of a delivery. It is a child of the
// span that produced the record, whose context is in the record's headers, and has a link to
// it and to the delivery before. A nack or a reject is a separate span, "nack TOPIC" for
// example, and what handlers and dead letters send has the context of the delivery. So
// a trace continues through redeliveries, records that were read again, and dead letters.
//
// docs/metrics.md lists spans and metrics.
package ackpolicyotel

import (
	"fmt"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

const scope = "github.com/ackpolicy/watermill-ackpolicy/ackpolicyotel"

// Options of New. What is nil is the global one.
type Options struct {
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
	Propagator     propagation.TextMapPropagator
	// NewTraces begins a trace for each delivery, with a link to the span that produced the
	// record, instead of a child of that span.
	NewTraces bool
	// Share is the part, from 0 to 1, of the records to trace whose producers are not in a
	// trace. A record whose producer is in one is traced if the producer's span is sampled or,
	// with NewTraces, by Share too. The sampler of the TracerProvider is not asked for other
	// records, which costs less than to ask it for each. 0 means to ask it for each.
	// Rejects and dead letters have a span in any case.
	Share float64
	// AckSpans adds a span for each ack, below that of its delivery. It doubles what tracing
	// costs where nothing fails. Nacks, rejects and dead letters have one without it.
	AckSpans bool
}

// Telemetry traces and measures Subscribers. One serves all those of a process.
type Telemetry struct {
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	newTraces  bool
	ackSpans   bool
	share      float64
	places     places
	measures   *measures
}

// New returns Telemetry. It returns an error if the meter refuses an instrument.
func New(o Options) (*Telemetry, error) {
	if o.TracerProvider == nil {
		o.TracerProvider = otel.GetTracerProvider()
	}
	if o.MeterProvider == nil {
		o.MeterProvider = otel.GetMeterProvider()
	}
	if o.Propagator == nil {
		o.Propagator = otel.GetTextMapPropagator()
	}
	measures, err := newMeasures(o.MeterProvider.Meter(scope))
	if err != nil {
		return nil, fmt.Errorf("ackpolicyotel: %w", err)
	}
	return &Telemetry{
		tracer:     o.TracerProvider.Tracer(scope),
		propagator: o.Propagator, newTraces: o.NewTraces, ackSpans: o.AckSpans, share: o.Share,
		places:   places{measures: measures, newRoots: o.NewTraces},
		measures: measures,
	}, nil
}
