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
// topic and handler, and so their number does not depend on the records. Those of a topic end
// when no observed Subscriber reads it any more. docs/metrics.md lists them.
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
	// 5 minutes. New panics if they do not increase, as Prometheus does.
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
	prometheus.NewHistogram(prometheus.HistogramOpts{Name: "buckets", Buckets: o.Buckets}) // panics now, and not in a hook
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
	m.mu.Lock()
	subs := slices.Clone(m.subs)
	m.mu.Unlock()
	s := newSums(m.perPartition)
	for _, sub := range subs {
		if st := sub.State(); !st.Closing || len(st.Subscriptions) > 0 {
			s.add(&st, sub.Health())
		} else {
			m.forget(sub)
		}
	}
	s.collect(ch)
	read := map[place]bool{}
	for of := range s.subscriptions {
		read[place{label(of.group), of.topic}] = true
	}
	m.events.keep(read)
}

// forget removes a Subscriber that is closed.
func (m *Metrics) forget(sub *ackpolicy.Subscriber) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.subs = slices.DeleteFunc(m.subs, func(other *ackpolicy.Subscriber) bool { return other == sub })
}
