package ackpolicyprom

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Labels have the names that Watermill's own metrics and log lines use.
const (
	labelGroup   = "consumer_group"
	labelTopic   = "topic"
	labelHandler = "handler_name"
)

// label returns a value of a label. Kafka takes any bytes as the name of a group, and Prometheus
// panics with what is not UTF-8.
func label(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// status is what became of a delivery.
type status uint8

const (
	statusAcked status = iota
	statusNacked
	statusRejected
	statusSkipped // given up, and no handler has seen this delivery
	statusError   // acked although the handler failed, by the policy Ack
)

// statuses are the values of the label status, which are FastStream's.
var statuses = [...]string{"acked", "nacked", "rejected", "skipped", "error"}

// defaultBuckets are from a handler that only counts to one that calls slow services.
var defaultBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

// events counts what hooks are called with.
type events struct {
	deliveries                             *prometheus.CounterVec
	duration                               *prometheus.HistogramVec
	commitDuration                         *prometheus.HistogramVec
	rejected, letters, commits             *prometheus.CounterVec
	assigned, revoked, repeated            *prometheus.CounterVec
	undecodable, unconfirmed, resets, slow *prometheus.CounterVec
	fetchStalled, blocked, skippedByAReset *prometheus.CounterVec
	actions                                *prometheus.CounterVec

	last    atomic.Pointer[settled] // of the latest event
	mu      sync.Mutex
	settled map[subscription]*settled
	read    map[place]bool // topics that were read at the last collection
	left    map[place]bool // those of the one before that were not
}

// place is what most series are about. Its names are values of labels.
type place struct{ group, topic string }

// subscription is what series are aggregated by.
type subscription struct{ group, topic, handler string }

// settled has the series of a subscription at hand, for the event that comes most often.
type settled struct {
	of         subscription
	deliveries [len(statuses)]prometheus.Counter
	duration   [len(statuses)]prometheus.Observer
}

func newEvents(buckets []float64) *events {
	if buckets == nil {
		buckets = defaultBuckets
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ackpolicy_" + name, Help: help}, append([]string{labelGroup, labelTopic}, labels...))
	}
	return &events{
		settled:    map[subscription]*settled{},
		deliveries: counter("deliveries_total", "Deliveries that were settled, by what became of them.", labelHandler, "status"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ackpolicy_delivery_duration_seconds", Buckets: buckets,
			Help: "Time from the hand-out of a record until it was settled.",
		}, []string{labelGroup, labelTopic, labelHandler, "status"}),
		commitDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ackpolicy_commit_duration_seconds", Buckets: prometheus.ExponentialBuckets(.001, 2, 14),
			Help: "Time that the request of a commit took, for each partition in it.",
		}, []string{labelGroup, labelTopic, "result"}),
		rejected:        counter("rejected_records_total", "Records that were rejected. The series is there from the first assignment on."),
		letters:         counter("dead_letters_total", "Attempts to store a dead letter: stored, failed (and tried again) or given_up.", "result"),
		commits:         counter("commits_total", "Commits of a partition: stored or failed. Those that a slow hook missed are not counted.", "result"),
		assigned:        counter("assignments_total", "Partitions that were assigned."),
		revoked:         counter("revocations_total", "Partitions that were released: revoked, or on Close (closing).", "cause"),
		repeated:        counter("released_unmarked_records_total", "Settled records that come again after a release, since the commit had no room for their marks."),
		undecodable:     counter("undecodable_total", "Deliveries that the Unmarshaler could not decode."),
		unconfirmed:     counter("unconfirmed_total", "Records under ConfirmFirst whose handlers did not run, since their commit's outcome is unknown."),
		resets:          counter("position_resets_total", "Positions that were outside of the log."),
		skippedByAReset: counter("position_reset_skipped_records_total", "Offsets that were skipped because the position was outside of the log: records that are lost."),
		slow:            counter("slow_handler_reports_total", "Reports of a handler that has run for longer than HandlerSlow."),
		fetchStalled:    counter("fetch_stalls_total", "Reports of a partition that gets nothing although the broker has records."),
		blocked:         counter("blocked_total", "Times that a limit has kept a partition paused for some seconds."),
		actions:         counter("actions_total", "Pause, Resume, Retry, Reject and SetLimits by hand.", "action"),
	}
}

// vector is a CounterVec or a HistogramVec.
type vector interface {
	prometheus.Collector
	DeletePartialMatch(prometheus.Labels) int
}

func (e *events) all() []vector {
	return []vector{
		e.deliveries, e.duration, e.commitDuration, e.rejected, e.letters, e.commits, e.assigned, e.revoked, e.repeated, e.undecodable,
		e.unconfirmed, e.resets, e.skippedByAReset, e.slow, e.fetchStalled, e.blocked, e.actions,
	}
}

func (e *events) describe(ch chan<- *prometheus.Desc) {
	for _, c := range e.all() {
		c.Describe(ch)
	}
}

func (e *events) collect(ch chan<- prometheus.Metric) {
	for _, c := range e.all() {
		c.Collect(ch)
	}
}

func (e *events) hooks() ackpolicy.Hooks {
	return ackpolicy.Hooks{
		Assigned: func(ev ackpolicy.AssignedEvent) {
			e.begin(label(ev.Group), ev.Topic)
			e.assigned.WithLabelValues(label(ev.Group), ev.Topic).Inc()
		},
		Settled: e.onSettled,
		Committed: func(ev ackpolicy.CommittedEvent) {
			e.commits.WithLabelValues(label(ev.Group), ev.Topic, "stored").Inc()
			e.commitDuration.WithLabelValues(label(ev.Group), ev.Topic, "stored").Observe(ev.Duration.Seconds())
		},
		CommitFailed: func(ev ackpolicy.CommitFailedEvent) {
			e.commits.WithLabelValues(label(ev.Group), ev.Topic, "failed").Inc()
			e.commitDuration.WithLabelValues(label(ev.Group), ev.Topic, "failed").Observe(ev.Duration.Seconds())
		},
		Revoked: func(ev ackpolicy.RevokedEvent) {
			cause := "revoked"
			if ev.Cause == ackpolicy.ErrClosing {
				cause = "closing"
			}
			e.revoked.WithLabelValues(label(ev.Group), ev.Topic, cause).Inc()
			e.repeated.WithLabelValues(label(ev.Group), ev.Topic).Add(float64(ev.Unmarked))
		},
		Blocked:      func(ev ackpolicy.BlockedEvent) { e.blocked.WithLabelValues(label(ev.Group), ev.Topic).Inc() },
		FetchStalled: func(ev ackpolicy.FetchStalledEvent) { e.fetchStalled.WithLabelValues(label(ev.Group), ev.Topic).Inc() },
		Undecodable:  func(ev ackpolicy.UndecodableEvent) { e.undecodable.WithLabelValues(label(ev.Group), ev.Topic).Inc() },
		PositionReset: func(ev ackpolicy.PositionResetEvent) {
			e.resets.WithLabelValues(label(ev.Group), ev.Topic).Inc()
			if ev.Stored >= 0 && ev.Start > ev.Stored {
				e.skippedByAReset.WithLabelValues(label(ev.Group), ev.Topic).Add(float64(ev.Start - ev.Stored))
			}
		},
		DeadLettered: func(ev ackpolicy.DeadLetteredEvent) {
			e.letters.WithLabelValues(label(ev.Group), ev.Topic, letterResult(ev)).Inc()
		},
		Unconfirmed: func(ev ackpolicy.UnconfirmedEvent) { e.unconfirmed.WithLabelValues(label(ev.Group), ev.Topic).Inc() },
		HandlerSlow: func(ev ackpolicy.HandlerSlowEvent) { e.slow.WithLabelValues(label(ev.Group), ev.Topic).Inc() },
		Acted: func(ev ackpolicy.ActedEvent) {
			e.actions.WithLabelValues(label(ev.Group), ev.Topic, string(ev.Action)).Inc()
		},
	}
}

// keep removes the series of topics that were read and are not any more. It is called after each
// collection, with the topics that are read, and removes what was collected once since.
func (e *events) keep(read map[place]bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for of := range e.left {
		if !read[of] {
			e.remove(of)
		}
	}
	maps.DeleteFunc(e.read, func(of place, _ bool) bool { return read[of] })
	e.left, e.read = e.read, read
}

func (e *events) remove(of place) {
	for s := range e.settled {
		if (place{label(s.group), s.topic}) == of {
			delete(e.settled, s)
		}
	}
	e.last.Store(nil)
	for _, v := range e.all() {
		v.DeletePartialMatch(prometheus.Labels{labelGroup: of.group, labelTopic: of.topic})
	}
}

// begin creates the series of a subscription, so that increase() sees the first event of each.
func (e *events) begin(group, topic string) {
	for _, c := range []*prometheus.CounterVec{
		e.rejected, e.repeated, e.undecodable, e.unconfirmed, e.resets, e.skippedByAReset, e.slow, e.fetchStalled, e.blocked,
	} {
		c.WithLabelValues(group, topic)
	}
	for _, result := range []string{"stored", "failed", "given_up"} {
		e.letters.WithLabelValues(group, topic, result)
	}
	for _, result := range []string{"stored", "failed"} {
		e.commits.WithLabelValues(group, topic, result)
	}
	for _, cause := range []string{"revoked", "closing"} {
		e.revoked.WithLabelValues(group, topic, cause)
	}
}

func letterResult(ev ackpolicy.DeadLetteredEvent) string {
	switch {
	case ev.Err == nil:
		return "stored"
	case ev.GivenUp:
		return "given_up"
	}
	return "failed"
}

func (e *events) onSettled(ev ackpolicy.SettledEvent) {
	of := e.of(subscription{ev.Group, ev.Topic, ev.Handler})
	status := statusOf(&ev)
	of.deliveries[status].Inc()
	if ev.Duration > 0 {
		of.duration[status].Observe(ev.Duration.Seconds())
	}
	if ev.Status == ackpolicy.Rejected {
		e.rejected.WithLabelValues(label(ev.Group), ev.Topic).Inc()
	}
}

func (e *events) of(s subscription) *settled {
	if last := e.last.Load(); last != nil && last.of == s {
		return last
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	of := e.settled[s]
	if of == nil {
		of = &settled{of: s}
		for i, status := range statuses {
			of.deliveries[i] = e.deliveries.WithLabelValues(label(s.group), s.topic, label(s.handler), status)
			of.duration[i] = e.duration.WithLabelValues(label(s.group), s.topic, label(s.handler), status)
		}
		e.settled[s] = of
	}
	e.last.Store(of)
	return of
}

func statusOf(ev *ackpolicy.SettledEvent) status {
	switch {
	case ev.Status == ackpolicy.Nacked:
		return statusNacked
	case ev.Status == ackpolicy.Rejected && ev.Duration == 0:
		return statusSkipped
	case ev.Status == ackpolicy.Rejected:
		return statusRejected
	case ev.Reason != nil:
		return statusError
	}
	return statusAcked
}
