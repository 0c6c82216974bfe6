package ackpolicyotel

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// measures are the instruments. The names with "messaging." are those of the conventions.
type measures struct {
	meter      metric.Meter
	process    metric.Float64Histogram
	consumed   metric.Int64Counter
	operation  metric.Float64Histogram
	deliveries metric.Int64Counter
	workLag    metric.Int64ObservableGauge
	oldest     metric.Float64ObservableGauge
	series     sync.Map // metric.MeasurementOption by series: making one costs more than a measurement
}

// series is what the measurements of a subscription differ in.
type series struct{ group, topic, operation, class, status, errorType string }

// buckets are those that the conventions advise.
var buckets = metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10)

// The types of operations, from the conventions.
var (
	processes = semconv.MessagingOperationTypeProcess.Value.AsString()
	settles   = semconv.MessagingOperationTypeSettle.Value.AsString()
)

func newMeasures(meter metric.Meter) (*measures, error) {
	var errs []error
	m := &measures{meter: meter}
	add := func(err error) { errs = append(errs, err) }
	var err error
	m.process, err = meter.Float64Histogram("messaging.process.duration", buckets, metric.WithUnit("s"),
		metric.WithDescription("Duration of processing operation."))
	add(err)
	m.consumed, err = meter.Int64Counter("messaging.client.consumed.messages", metric.WithUnit("{message}"),
		metric.WithDescription("Number of messages that were delivered to the application."))
	add(err)
	m.operation, err = meter.Float64Histogram("messaging.client.operation.duration", buckets, metric.WithUnit("s"),
		metric.WithDescription("Duration of messaging operation initiated by a producer or consumer client."))
	add(err)
	m.deliveries, err = meter.Int64Counter("ackpolicy.deliveries", metric.WithUnit("{message}"),
		metric.WithDescription("Deliveries that were settled, by what became of them."))
	add(err)
	m.workLag, err = meter.Int64ObservableGauge("ackpolicy.work_lag", metric.WithUnit("{message}"),
		metric.WithDescription("Records that are not settled, in the window and not fetched yet."))
	add(err)
	m.oldest, err = meter.Float64ObservableGauge("ackpolicy.oldest_record.duration", metric.WithUnit("s"),
		metric.WithDescription("The longest time that a record that holds a partition has been doing what it does."))
	add(err)
	return m, errors.Join(errs...)
}

func (m *measures) at(s series) metric.MeasurementOption {
	if known, ok := m.series.Load(s); ok {
		return known.(metric.MeasurementOption)
	}
	attributes := []attribute.KeyValue{
		semconv.MessagingSystemKafka, semconv.MessagingOperationName(s.operation), semconv.MessagingOperationTypeKey.String(s.class),
		semconv.MessagingDestinationName(s.topic), semconv.MessagingConsumerGroupName(s.group),
	}
	if s.status != "" {
		attributes = append(attributes, statusKey.String(s.status))
	}
	if s.errorType != "" {
		attributes = append(attributes, semconv.ErrorTypeKey.String(s.errorType))
	}
	known, _ := m.series.LoadOrStore(s, metric.WithAttributeSet(attribute.NewSet(attributes...)))
	return known.(metric.MeasurementOption)
}

// processed measures a delivery whose handlers have returned.
func (m *measures) processed(ctx context.Context, d *ackpolicy.Delivery, took time.Duration, kind attribute.KeyValue, failed bool) {
	s := series{group: d.Group(), topic: d.Topic(), operation: "process", class: processes}
	if failed {
		s.errorType = kind.Value.AsString()
	}
	where := m.at(s)
	m.process.Record(ctx, took.Seconds(), where)
	m.consumed.Add(ctx, 1, where)
}

func (m *measures) committed(of ackpolicy.PartitionRef, took time.Duration, err error) {
	s := series{group: of.Group, topic: of.Topic, operation: "commit", class: settles}
	if err != nil {
		s.errorType = semconv.ErrorType(err).Value.AsString()
	}
	m.operation.Record(context.Background(), took.Seconds(), m.at(s))
}

func (m *measures) settled(e ackpolicy.SettledEvent) {
	m.deliveries.Add(context.Background(), 1, m.at(series{
		group: e.Group, topic: e.Topic, operation: operations[e.Status], class: settles, status: e.Status.String(),
	}))
}

// Observe adds gauges of the state of a Subscriber, until stop is called.
func (t *Telemetry) Observe(sub *ackpolicy.Subscriber) (stop func() error, err error) {
	m := t.measures
	registration, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		st := sub.State()
		for i := range st.Subscriptions {
			of := &st.Subscriptions[i]
			var lag int64
			var oldest time.Duration
			for _, p := range of.Partitions {
				lag += p.WorkLag
				if p.Oldest != nil {
					oldest = max(oldest, st.Time.Sub(p.Oldest.Since))
				}
			}
			where := metric.WithAttributes(semconv.MessagingSystemKafka,
				semconv.MessagingDestinationName(of.Topic), semconv.MessagingConsumerGroupName(st.ConsumerGroup))
			o.ObserveInt64(m.workLag, lag, where)
			o.ObserveFloat64(m.oldest, oldest.Seconds(), where)
		}
		return nil
	}, m.workLag, m.oldest)
	if err != nil {
		return nil, err
	}
	return registration.Unregister, nil
}
