package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyotel"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyprom"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
)

// metered is ours through a Router with all there is to see without traces: Prometheus metrics, gathered each second,
// the health, and the page, which one viewer has open.
func metered(o ackpolicy.Ordering) func(context.Context, job, *meter) error {
	return func(ctx context.Context, j job, m *meter) error {
		metrics := ackpolicyprom.New(ackpolicyprom.Options{PerPartition: true})
		registry := prometheus.NewRegistry()
		if err := registry.Register(metrics); err != nil {
			return err
		}
		timeline := &ackpolicyweb.Timeline{}
		watched := func(ctx context.Context, sub message.Subscriber, j job, m *meter) error {
			s := sub.(*ackpolicy.Subscriber)
			metrics.Observe(s)
			page := ackpolicyweb.New(ackpolicyweb.Options{Subscribers: []ackpolicyweb.Subscriber{s}, Timeline: timeline})
			server := httptest.NewServer(page)
			defer server.Close()
			defer page.Close()
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			scraped := make(chan error, 1)
			go func() { scraped <- scrape(ctx, registry, s) }()
			viewed := make(chan error, 1)
			go func() { viewed <- view(ctx, server.URL) }()
			err := router(ackpolicy.NackOnError.Middleware)(ctx, sub, j, m)
			cancel()
			return errors.Join(err, <-scraped, <-viewed)
		}
		return ours(o, watched, func(c *ackpolicy.SubscriberConfig) {
			c.Hooks = ackpolicy.JoinHooks(metrics.Hooks(), timeline.Hooks())
		})(ctx, j, m)
	}
}

func scrape(ctx context.Context, registry prometheus.Gatherer, s *ackpolicy.Subscriber) error {
	for tick := time.NewTicker(time.Second); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s.Health()
		if _, err := registry.Gather(); err != nil {
			return err
		}
	}
}

// view reads the page's events until ctx ends.
func view(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/live", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New("the page's events: " + response.Status)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	return nil
}

// traced is ours through a Router with OpenTelemetry: metrics, and a span for each delivery, of which a part is
// sampled, or for a share of them. Nothing is exported.
func traced(o ackpolicy.Ordering, part, share float64) func(context.Context, job, *meter) error {
	return func(ctx context.Context, j job, m *meter) error {
		spans := sdktrace.NewTracerProvider(sdktrace.WithBatcher(tracetest.NewNoopExporter()),
			sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(part))))
		defer func() { _ = spans.Shutdown(context.Background()) }()
		measures := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
		defer func() { _ = measures.Shutdown(context.Background()) }()
		telemetry, err := ackpolicyotel.New(ackpolicyotel.Options{TracerProvider: spans, MeterProvider: measures, Share: share})
		if err != nil {
			return err
		}
		watched := router(telemetry.Middleware, ackpolicy.NackOnError.Middleware)
		return ours(o, watched, func(c *ackpolicy.SubscriberConfig) { c.Hooks = telemetry.Hooks() })(ctx, j, m)
	}
}
