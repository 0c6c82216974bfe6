package ackpolicyotel

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// measures are the instruments. The names with "messaging." are those of the conventions.
type measures struct {
	process    metric.Float64Histogram
	operation  metric.Float64Histogram
	consumed   metric.Int64ObservableCounter
	deliveries metric.Int64ObservableCounter
	workLag    metric.Int64ObservableGauge
	oldest     metric.Float64ObservableGauge
	series     sync.Map // *series by seriesOf

	mu   sync.Mutex
	subs []*ackpolicy.Subscriber // that are observed
}

// seriesOf is what series differ in.
type seriesOf struct{ group, topic, operation, class, status, errorType string }

// series is a series of each metric that has these attributes. The set of them is made once, since
// that costs more than a measurement, and what is counted is observed when somebody collects it.
type series struct {
	record []metric.RecordOption
	where  metric.MeasurementOption
	n      atomic.Int64
}

// buckets are those that the conventions advise.
var buckets = metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10)

// The types of operations, from the conventions.
var (
	processes = semconv.MessagingOperationTypeProcess.Value.AsString()
	settles   = semconv.MessagingOperationTypeSettle.Value.AsString()
)

func newMeasures(meter metric.Meter) (*measures, error) {
	var errs []error
	m := &measures{}
	add := func(err error) { errs = append(errs, err) }
	var err error
	m.process, err = meter.Float64Histogram("messaging.process.duration", buckets, metric.WithUnit("s"),
		metric.WithDescription("Duration of processing operation."))
	add(err)
	m.consumed, err = meter.Int64ObservableCounter("messaging.client.consumed.messages", metric.WithUnit("{message}"),
		metric.WithDescription("Number of messages that were delivered to the application."))
	add(err)
	m.operation, err = meter.Float64Histogram("messaging.client.operation.duration", buckets, metric.WithUnit("s"),
		metric.WithDescription("Duration of messaging operation initiated by a producer or consumer client."))
	add(err)
	m.deliveries, err = meter.Int64ObservableCounter("ackpolicy.deliveries", metric.WithUnit("{message}"),
		metric.WithDescription("Deliveries that were settled, by what became of them."))
	add(err)
	m.workLag, err = meter.Int64ObservableGauge("ackpolicy.work_lag", metric.WithUnit("{message}"),
		metric.WithDescription("Records that are not settled, in the window and not fetched yet."))
	add(err)
	m.oldest, err = meter.Float64ObservableGauge("ackpolicy.oldest_record.duration", metric.WithUnit("s"),
		metric.WithDescription("The longest time that a record that holds a partition has been doing what it does."))
	add(err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	_, err = meter.RegisterCallback(m.observe, m.consumed, m.deliveries, m.workLag, m.oldest)
	return m, err
}

func (m *measures) at(of seriesOf) *series {
	if known, ok := m.series.Load(of); ok {
		return known.(*series)
	}
	attributes := []attribute.KeyValue{
		semconv.MessagingSystemKafka, semconv.MessagingOperationName(of.operation), semconv.MessagingOperationTypeKey.String(of.class),
		semconv.MessagingDestinationName(of.topic), semconv.MessagingConsumerGroupName(valid(of.group)),
	}
	if of.status != "" {
		attributes = append(attributes, statusKey.String(of.status))
	}
	if of.errorType != "" {
		attributes = append(attributes, semconv.ErrorTypeKey.String(of.errorType))
	}
	where := metric.WithAttributeSet(attribute.NewSet(attributes...))
	known, _ := m.series.LoadOrStore(of, &series{record: []metric.RecordOption{where}, where: where})
	return known.(*series)
}

func (m *measures) committed(of ackpolicy.PartitionRef, took time.Duration, err error) {
	s := seriesOf{group: of.Group, topic: of.Topic, operation: "commit", class: settles}
	if err != nil {
		s.errorType = typeOf(err)
	}
	m.operation.Record(context.Background(), took.Seconds(), m.at(s).record...)
}

// observe reports what is counted, and the states of the Subscribers.
func (m *measures) observe(_ context.Context, o metric.Observer) error {
	m.series.Range(func(of, s any) bool {
		switch n := s.(*series).n.Load(); {
		case n == 0:
		case of.(seriesOf).status == "":
			o.ObserveInt64(m.consumed, n, s.(*series).where)
		default:
			o.ObserveInt64(m.deliveries, n, s.(*series).where)
		}
		return true
	})
	type place struct{ group, topic string }
	type sums struct {
		lag    int64
		oldest time.Duration
	}
	all := map[place]sums{} // several Subscribers may have the same group and topic
	for _, sub := range m.observed() {
		st := sub.State()
		if st.Closing && len(st.Subscriptions) == 0 {
			m.forget(sub)
		}
		for i := range st.Subscriptions {
			of := &st.Subscriptions[i]
			s := all[place{st.ConsumerGroup, of.Topic}]
			for _, p := range of.Partitions {
				s.lag += p.WorkLag
				if p.Oldest != nil {
					s.oldest = max(s.oldest, st.Time.Sub(p.Oldest.Since))
				}
			}
			all[place{st.ConsumerGroup, of.Topic}] = s
		}
	}
	for of, s := range all {
		where := metric.WithAttributes(semconv.MessagingSystemKafka,
			semconv.MessagingDestinationName(of.topic), semconv.MessagingConsumerGroupName(valid(of.group)))
		o.ObserveInt64(m.workLag, s.lag, where)
		o.ObserveFloat64(m.oldest, s.oldest.Seconds(), where)
	}
	return nil
}

func (m *measures) observed() []*ackpolicy.Subscriber {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.subs)
}

func (m *measures) forget(sub *ackpolicy.Subscriber) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.subs = slices.DeleteFunc(m.subs, func(other *ackpolicy.Subscriber) bool { return other == sub })
}

// Observe adds gauges of the state of a Subscriber, until stop is called or it is closed. Those
// of Subscribers with the same group and topic are added up. The errors are always nil.
func (t *Telemetry) Observe(sub *ackpolicy.Subscriber) (stop func() error, err error) {
	m := t.measures
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.subs, sub) {
		m.subs = append(m.subs, sub)
	}
	return func() error {
		m.forget(sub)
		return nil
	}, nil
}
