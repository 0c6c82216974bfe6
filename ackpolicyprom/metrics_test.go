package ackpolicyprom_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/metrics"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyprom"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// measured is a service with metrics.
type measured struct {
	*testkit.Service
	registry *prometheus.Registry
	metrics  *ackpolicyprom.Metrics
}

func newMeasured(t *testing.T, o ackpolicyprom.Options) *measured {
	m := &measured{testkit.NewService(t), prometheus.NewPedanticRegistry(), ackpolicyprom.New(o)}
	m.registry.MustRegister(m.metrics)
	return m
}

// consume adds a handler with its own Subscriber.
func (m *measured) consume(t *testing.T, name, topic string, cfg ackpolicy.SubscriberConfig, h testkit.Handle) *ackpolicy.Subscriber {
	cfg.Hooks = ackpolicy.JoinHooks(cfg.Hooks, m.metrics.Hooks())
	sub := testkit.NewSubscriber(t, cfg, m.Log)
	m.metrics.Observe(sub)
	m.Router.AddConsumerHandler(name, topic, sub, m.Recorded(h))
	return sub
}

// series returns the values of all series, by name and labels in order.
func series(t *testing.T, g prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := g.Gather()
	testkit.Check(t, err)
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			value := m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			all[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = value
		}
	}
	return all
}

// wait waits until series have these values.
func (m *measured) wait(t *testing.T, want map[string]float64) {
	t.Helper()
	var got map[string]float64
	holds := testkit.Poll(func() bool {
		got = series(t, m.registry)
		for name, value := range want {
			if v, ok := got[name]; !ok || v != value {
				return false
			}
		}
		return true
	})
	if holds {
		return
	}
	for name, value := range want {
		if v, ok := got[name]; !ok || v != value {
			t.Errorf("%s: %v (there: %v), want %v", name, v, ok, value)
		}
	}
	t.Logf("%v", got)
}

// Deliveries are counted by what became of them.
func TestDeliveriesByStatus(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(5)...)
	m := newMeasured(t, ackpolicyprom.Options{})
	m.Router.AddMiddleware(ackpolicy.Ack.Middleware)
	cfg := testkit.Config(group)
	cfg.Backoff = func(int, error) time.Duration { return time.Millisecond }
	cfg.DeadLetter = &testkit.Flaky{}
	began, release := make(chan struct{}), make(chan struct{})
	sub := m.consume(t, "orders", topic, cfg, func(_ *message.Message, d *ackpolicy.Delivery) error {
		switch {
		case d.Offset() == 0:
			close(began)
			<-release
			return nil
		case d.Offset() == 1 && d.Attempt() == 1:
			return ackpolicy.ErrNack
		case d.Offset() == 2:
			return ackpolicy.ErrReject
		case d.Offset() == 3:
			return errors.New("boom")
		}
		return nil
	})
	m.Start(t)
	testkit.Await(t, "the first handler", began)
	testkit.Eventually(t, "record 4 to be given up before its turn", func() bool {
		return sub.Reject("alice", topic, 0, 4, "not needed") == nil
	})
	close(release)
	at := "consumer_group=" + group + ",handler_name=orders,"
	inTopic := ",topic=" + topic + "}"
	m.wait(t, map[string]float64{
		"ackpolicy_deliveries_total{" + at + "status=acked" + inTopic:                       2,
		"ackpolicy_deliveries_total{" + at + "status=nacked" + inTopic:                      1,
		"ackpolicy_deliveries_total{" + at + "status=rejected" + inTopic:                    1,
		"ackpolicy_deliveries_total{" + at + "status=error" + inTopic:                       1,
		"ackpolicy_deliveries_total{" + at + "status=skipped" + inTopic:                     1,
		"ackpolicy_delivery_duration_seconds{" + at + "status=acked" + inTopic:              2,
		"ackpolicy_delivery_duration_seconds{" + at + "status=skipped" + inTopic:            0,
		"ackpolicy_rejected_records_total{consumer_group=" + group + inTopic:                2,
		"ackpolicy_dead_letters_total{consumer_group=" + group + ",result=stored" + inTopic: 2,
		"ackpolicy_actions_total{action=reject,consumer_group=" + group + inTopic:           1,
		"ackpolicy_work_lag_records{" + strings.TrimSuffix(at, ",") + inTopic:               0,
		"ackpolicy_ready{consumer_group=" + group + "}":                                     1,
	})
	problems, err := testutil.GatherAndLint(m.registry)
	testkit.Check(t, err)
	for _, p := range problems {
		t.Errorf("lint: %s: %s", p.Metric, p.Text)
	}
	m.Stop()
	testkit.Check(t, sub.Close())
	for name := range series(t, m.registry) {
		if strings.HasPrefix(name, "ackpolicy_ready") || strings.HasPrefix(name, "ackpolicy_work_lag") {
			t.Errorf("a closed Subscriber still has %s", name)
		}
	}
}

// What holds a partition shows in gauges, summed over the Subscribers of a process; with
// PerPartition also for each partition.
func TestGaugesOfWhatIsHeld(t *testing.T) {
	t.Parallel()
	group := brokertest.Group(t)
	topics := []string{testkit.NewTopic(t, 1, testkit.Numbered(3)...), testkit.NewTopic(t, 1, testkit.Numbered(2)...)}
	m := newMeasured(t, ackpolicyprom.Options{PerPartition: true})
	m.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	fail := func(*message.Message, *ackpolicy.Delivery) error { return errors.New("boom") }
	for i, topic := range topics {
		cfg := testkit.Config(group)
		cfg.Backoff = func(int, error) time.Duration { return time.Hour }
		m.consume(t, []string{"first", "second"}[i], topic, cfg, fail)
	}
	m.Start(t)
	want := map[string]float64{"ackpolicy_ready{consumer_group=" + group + "}": 1}
	for i, topic := range topics {
		at := "{consumer_group=" + group + ",handler_name=" + []string{"first", "second"}[i] + ",topic=" + topic + "}"
		partition := "{consumer_group=" + group + ",partition=0,topic=" + topic + "}"
		want["ackpolicy_work_lag_records"+at] = float64(3 - i)
		want["ackpolicy_nacked_records"+at] = 1
		want["ackpolicy_queued_records"+at] = float64(2 - i)
		want["ackpolicy_oldest_record_attempts_max"+at] = 1
		want["ackpolicy_subscriptions_consuming"+at] = 1
		want["ackpolicy_assigned_partitions"+at] = 1
		want["ackpolicy_partition_oldest_record_offset"+partition] = 0
		want["ackpolicy_partition_work_lag_records"+partition] = float64(3 - i)
	}
	m.wait(t, want)
	for name, value := range series(t, m.registry) {
		if strings.HasPrefix(name, "ackpolicy_oldest_record_seconds_max{") && (!strings.Contains(name, "status=parked") || value <= 0 || value > 600) {
			t.Errorf("%s: %v", name, value)
		}
	}
	m.Stop()
}

// The series of a topic end once nobody reads it, after one more collection: what was counted last is seen.
func TestSeriesEndWithTheLastReader(t *testing.T) {
	t.Parallel()
	group := brokertest.Group(t)
	kept, gone := testkit.NewTopic(t, 1, testkit.Numbered(1)...), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	m := newMeasured(t, ackpolicyprom.Options{PerPartition: true})
	m.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	m.consume(t, "first", kept, testkit.Config(group), testkit.Succeed)
	sub := m.consume(t, "second", gone, testkit.Config(group), testkit.Succeed)
	m.Start(t)
	acked := func(handler, topic string) string {
		return "ackpolicy_deliveries_total{consumer_group=" + group + ",handler_name=" + handler + ",status=acked,topic=" + topic + "}"
	}
	m.wait(t, map[string]float64{acked("first", kept): 1, acked("second", gone): 2})
	testkit.Check(t, sub.Close())
	closed := series(t, m.registry)
	if revoked := "ackpolicy_revocations_total{cause=closing,consumer_group=" + group + ",topic=" + gone + "}"; closed[revoked] != 1 || closed[acked("second", gone)] != 2 {
		t.Errorf("after Close: %v", closed)
	}
	_ = series(t, m.registry)
	left := series(t, m.registry)
	if left[acked("first", kept)] != 1 {
		t.Errorf("the series of the other topic: %v", left)
	}
	for name := range left {
		if strings.Contains(name, "topic="+gone+"}") {
			t.Errorf("still there: %s", name)
		}
	}
	m.Stop()
}

// The number of series does not depend on the records.
func TestSeriesDoNotGrowWithRecords(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.OwnKeys(0, 50)...)
	m := newMeasured(t, ackpolicyprom.Options{PerPartition: true})
	m.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	m.consume(t, "orders", topic, testkit.Config(brokertest.Group(t)), testkit.Succeed)
	m.Start(t)
	m.Journal.Wait(t, 50)
	before := 0
	testkit.Eventually(t, "the series of an idle subscription", func() bool {
		n := len(series(t, m.registry))
		defer func() { before = n }()
		return n == before
	})
	testkit.Produce(t, topic, 0, testkit.OwnKeys(50, 500)...)
	m.Journal.Wait(t, 550)
	if after := len(series(t, m.registry)); after > before+1 { // the oldest record may just be in flight
		t.Errorf("%d series after 50 records, %d after 550", before, after)
	}
	m.Stop()
}

// What Watermill's own metrics call our rejects: acked where a signal rejects, nacked where an error does.
func TestWatermillsNameForRejects(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	registry := prometheus.NewRegistry()
	s := testkit.NewService(t)
	builder := metrics.NewPrometheusMetricsBuilder(registry, "", "")
	builder.AddPrometheusRouterMetrics(s.Router)
	s.Router.AddMiddleware(ackpolicy.RejectOnError.Middleware)
	sub := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t)), s.Log)
	s.Router.AddConsumerHandler("orders", topic, sub, s.Recorded(func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return ackpolicy.ErrReject
		}
		return errors.New("boom")
	}))
	s.Start(t)
	want := map[string]float64{
		"subscriber_messages_received_total{acked=acked,handler_name=orders,subscriber_name=kafka.Subscriber}":  1,
		"subscriber_messages_received_total{acked=nacked,handler_name=orders,subscriber_name=kafka.Subscriber}": 1,
		"handler_execution_time_seconds{handler_name=orders,success=true}":                                      1,
		"handler_execution_time_seconds{handler_name=orders,success=false}":                                     1,
	}
	(&measured{Service: s, registry: registry}).wait(t, want)
	for _, d := range s.Journal.All() {
		if d.Status() != ackpolicy.Rejected {
			t.Errorf("record %d: %v", d.Offset(), d.Status())
		}
	}
	s.Stop()
}

// The names of a group and of a handler may be any bytes, and are no reason to panic; buckets that Prometheus
// refuses are one, at the start.
func TestNamesAndBucketsThatPrometheusRefuses(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t)+"\xff", testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	m := newMeasured(t, ackpolicyprom.Options{PerPartition: true})
	m.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	m.consume(t, "orders\xfe", topic, testkit.Config(group), testkit.Succeed)
	m.Start(t)
	valid := strings.ToValidUTF8(group, "\uFFFD")
	m.wait(t, map[string]float64{
		"ackpolicy_deliveries_total{consumer_group=" + valid + ",handler_name=orders\uFFFD,status=acked,topic=" + topic + "}": 2,
		"ackpolicy_work_lag_records{consumer_group=" + valid + ",handler_name=orders\uFFFD,topic=" + topic + "}":              0,
		"ackpolicy_ready{consumer_group=" + valid + "}":                                                                       1,
	})
	if failed := testkit.Containing(m.Log.At("error"), "A hook failed"); len(failed) > 0 {
		t.Error(failed)
	}
	m.Stop()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	ackpolicyprom.New(ackpolicyprom.Options{Buckets: []float64{2, 1}})
}
