// Package ackpolicyprom exports what ackpolicy's Subscribers do as Prometheus metrics.
//
//	metrics := ackpolicyprom.New(ackpolicyprom.Options{})
//	prometheus.MustRegister(metrics)
//
//	config.Hooks = ackpolicy.JoinHooks(config.Hooks, metrics.Hooks())
//	subscriber, err := ackpolicy.NewSubscriber(config, logger)
//	...
//	metrics.Observe(subscriber)
//
// One Metrics serves all Subscribers of a process. Series are aggregated by consumer group,
// topic and handler, and so their number does not depend on the records. docs/metrics.md
// lists them.
package ackpolicyprom

import (
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Options of New. The zero value is a working default.
type Options struct {
	// PerPartition adds series with a partition label: offsets, lags, and the record that
	// holds the partition.
	PerPartition bool
	// Buckets are those of the duration of deliveries, in seconds. nil means from 1 ms to
	// 5 minutes.
	Buckets []float64
}

// Metrics is a prometheus.Collector over Subscribers.
type Metrics struct {
	perPartition bool
	events       *events

	mu   sync.Mutex
	subs []*ackpolicy.Subscriber
}

var _ prometheus.Collector = (*Metrics)(nil)

// New returns Metrics without a Subscriber.
func New(o Options) *Metrics {
	return &Metrics{perPartition: o.PerPartition, events: newEvents(o.Buckets)}
}

// Hooks returns the hooks that count events. They belong into the configuration of each
// Subscriber, joined with other hooks by ackpolicy.JoinHooks.
func (m *Metrics) Hooks() ackpolicy.Hooks { return m.events.hooks() }

// Observe adds the state of a Subscriber, until that is closed.
func (m *Metrics) Observe(sub *ackpolicy.Subscriber) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.subs, sub) {
		m.subs = append(m.subs, sub)
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.events.describe(ch)
	for _, d := range []*prometheus.Desc{live, ready, problems, failing, oldest} {
		ch <- d
	}
	for i := range subscriptionGauges {
		ch <- subscriptionGauges[i].desc
	}
	for i := range gauges {
		ch <- gauges[i].desc
	}
	if m.perPartition {
		for i := range partitionGauges {
			ch <- partitionGauges[i].desc
		}
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.events.collect(ch)
	s := newSums(m.perPartition)
	for _, sub := range m.open() {
		s.add(sub)
	}
	s.collect(ch)
}

// open returns the Subscribers without those that are closed.
func (m *Metrics) open() []*ackpolicy.Subscriber {
	m.mu.Lock()
	subs := slices.Clone(m.subs)
	m.mu.Unlock()
	closed := func(sub *ackpolicy.Subscriber) bool {
		st := sub.State()
		return st.Closing && len(st.Subscriptions) == 0
	}
	gone := slices.DeleteFunc(slices.Clone(subs), func(sub *ackpolicy.Subscriber) bool { return !closed(sub) })
	if len(gone) > 0 {
		m.mu.Lock()
		m.subs = slices.DeleteFunc(m.subs, func(sub *ackpolicy.Subscriber) bool { return slices.Contains(gone, sub) })
		m.mu.Unlock()
	}
	return slices.DeleteFunc(subs, func(sub *ackpolicy.Subscriber) bool { return slices.Contains(gone, sub) })
}
