package ackpolicyotel_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyotel"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
)

// What a delivery and its ack cost, beside what a span costs that somebody begins and ends with the SDK alone.
func BenchmarkDelivery(b *testing.B) {
	for _, sampler := range []struct {
		name string
		sdktrace.Sampler
	}{
		{"always", sdktrace.AlwaysSample()},
		{"1%", sdktrace.ParentBased(sdktrace.TraceIDRatioBased(0.01))},
		{"never", sdktrace.NeverSample()},
	} {
		provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler.Sampler), sdktrace.WithBatcher(tracetest.NewNoopExporter()))
		measures := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
		b.Run(sampler.name+"/SDK", func(b *testing.B) {
			tracer, ctx := provider.Tracer("bench"), context.Background()
			options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
				attribute.String("a", "kafka"), attribute.String("b", "topic"), attribute.String("c", "group"),
			)}
			b.ReportAllocs()
			for b.Loop() {
				_, span := tracer.Start(ctx, "process topic", options...)
				span.SetAttributes(attribute.Int("d", 1), attribute.Int("e", 2))
				span.End()
			}
		})
		settled := ackpolicy.SettledEvent{RecordRef: ackpolicy.RecordRef{
			PartitionRef: ackpolicy.PartitionRef{Group: "group", Topic: "topic", Handler: "handler"}, Attempt: 1,
		}, Status: ackpolicy.Acked}
		for name, set := range map[string]ackpolicyotel.Options{"delivery": {}, "delivery and ack": {AckSpans: true}, "share 1%": {Share: 0.01}} {
			set.TracerProvider, set.MeterProvider, set.Propagator = provider, measures, propagation.TraceContext{}
			telemetry, err := ackpolicyotel.New(set)
			if err != nil {
				b.Fatal(err)
			}
			hook := telemetry.Hooks().Settled
			handle := telemetry.Middleware(func(*message.Message) ([]*message.Message, error) { return nil, nil })
			msg := message.NewMessage("1", nil)
			ackpolicytest.New(msg, ackpolicytest.Record{})
			b.Run(sampler.name+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					_, _ = handle(msg)
					hook(settled)
				}
			})
			b.Run(sampler.name+"/"+name+", in a goroutine as in a Router", func(b *testing.B) {
				done := make(chan struct{})
				for b.Loop() {
					go func() {
						_, _ = handle(msg)
						done <- struct{}{}
					}()
					<-done
					hook(settled)
				}
			})
		}
		_ = provider.Shutdown(context.Background())
		_ = measures.Shutdown(context.Background())
	}
}
