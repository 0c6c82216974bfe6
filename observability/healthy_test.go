package observability_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/prometheus/rules"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyprom"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var (
	healthyFor  = flag.Duration("healthy", 10*time.Second, "how long TestHealthy has records come")
	healthyRate = flag.Int("healthy-rate", 500, "its records per second")
)

// healthy is a group of three or four members that handle two topics: one under NackOnError, by key, one under Manual.
// What they do is what happens in services that work: some deliveries fail, and succeed at the next or the fourth one;
// some are nacked with a delay, some take long, some are delayed by their producer, some are settled later; members are
// deployed again, a fourth one comes and goes, and a topic is paused for a while.
type healthy struct {
	t        *testing.T
	prom     *prometheusServer
	brokers  []string
	group    string
	topics   [2]string
	scale    time.Duration // of the whole run to an hour: short runs are in a hurry
	late     sync.WaitGroup
	deploys  atomic.Int32
	attempts [5]atomic.Int64 // deliveries by attempt
	settled  atomic.Int64
}

const healthyPartitions = 6

// healthyMember is a process of the group, in this one.
type healthyMember struct {
	sub  *ackpolicy.Subscriber
	stop func() error
}

func (h *healthy) start() (*healthyMember, error) {
	metrics := ackpolicyprom.New(ackpolicyprom.Options{})
	cfg := testkit.Config(h.group, testkit.Ordering(ackpolicy.OrderByKey, 8))
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Session.Timeout = 10 * time.Second
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Heartbeat.Interval = 3 * time.Second
	cfg.CommitInterval = 0
	cfg.Backoff = ackpolicy.ExponentialBackoff{Initial: 200 * time.Millisecond}.Delay
	cfg.Hooks = metrics.Hooks()
	log := errorLog{t: h.t}
	sub, err := ackpolicy.NewSubscriber(cfg, log)
	if err != nil {
		return nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, log)
	if err != nil {
		return nil, err
	}
	for i, policy := range []ackpolicy.Policy{ackpolicy.NackOnError, ackpolicy.Manual} {
		handler := router.AddConsumerHandler(policy.String(), h.topics[i], sub, func(msg *message.Message) error {
			d, ok := ackpolicy.FromMessage(msg)
			if !ok {
				return errors.New("a message without a Delivery")
			}
			return h.handle(msg, d, policy == ackpolicy.Manual)
		})
		handler.AddMiddleware(policy.Middleware)
	}
	metrics.Observe(sub)
	unscrape := h.prom.scrapes(h.t, metrics)
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	return &healthyMember{sub, func() error {
		err := errors.Join(router.Close(), <-ended)
		unscrape()
		return err
	}}, nil
}

// errorLog logs errors that are not the handler's. An hour of lines would not fit into memory.
type errorLog struct {
	watermill.NopLogger
	t *testing.T
}

func (l errorLog) Error(msg string, err error, fields watermill.LogFields) {
	if !errors.Is(err, errForNow) {
		l.t.Log(time.Now().Format(time.TimeOnly), msg, err, fields)
	}
}

func (l errorLog) With(watermill.LogFields) watermill.LoggerAdapter { return l }

var errForNow = errors.New("payment provider: 503 Service Unavailable")

// handle does with a record what its offset says.
func (h *healthy) handle(msg *message.Message, d *ackpolicy.Delivery, manual bool) error {
	h.attempts[min(d.Attempt(), len(h.attempts))-1].Add(1)
	dice := rand.New(rand.NewPCG(uint64(d.Partition()), uint64(d.Offset())))
	work := time.Duration(1+dice.IntN(10)) * time.Millisecond
	switch n := dice.IntN(2000); {
	case n == 0:
		work = h.in(8 * time.Second) // within DrainTimeout
	case n < 100 && d.Attempt() == 1, n < 20 && d.Attempt() <= 3:
		if manual {
			d.Nack()
		}
		return errForNow
	case n < 102 && d.Attempt() == 1:
		return ackpolicy.NackAfter(h.in(30 * time.Second))
	}
	select {
	case <-time.After(work):
	case <-msg.Context().Done():
		return context.Cause(msg.Context())
	}
	if !manual {
		h.settled.Add(1)
		return nil
	}
	h.late.Go(func() {
		select {
		case <-time.After(time.Duration(dice.IntN(1000)) * time.Millisecond):
		case <-d.Draining():
		}
		if d.Ack() {
			h.settled.Add(1)
		}
	})
	return nil
}

// in shortens a time of an hour's run.
func (h *healthy) in(d time.Duration) time.Duration { return d / h.scale }

// live deploys the members one after the other, has a fourth one join and leave, and pauses a topic, until ctx ends.
func (h *healthy) live(ctx context.Context) error {
	var members []*healthyMember
	defer func() {
		for _, m := range members {
			if err := m.stop(); err != nil {
				h.t.Error("stop:", err)
			}
		}
	}()
	join := func() error {
		m, err := h.start()
		members = append(members, m)
		return err
	}
	leave := func(i int) error {
		m := members[i]
		members = slices.Delete(members, i, i+1)
		h.deploys.Add(1)
		return m.stop()
	}
	for range 3 {
		if err := join(); err != nil {
			return err
		}
	}
	for round := 0; ; round++ {
		steps := []func() error{
			func() error { return errors.Join(leave(0), join()) }, // a deploy: one after the other
			func() error { return errors.Join(leave(0), join()) },
			func() error { return errors.Join(leave(0), join()) },
			join, // more members, and fewer
			func() error { return leave(3) },
			func() error { return members[0].sub.Pause("the soak", h.topics[round%2]) },
			func() error { return members[0].sub.Resume("the soak", h.topics[round%2]) },
		}
		for _, step := range steps {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(max(time.Second, h.in(40*time.Second))): // a rebalance takes its time, however short the run
			}
			if err := step(); err != nil {
				return err
			}
		}
	}
}

// produce has records come until ctx ends, and returns how many.
func (h *healthy) produce(ctx context.Context) (n int64, err error) {
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	cfg.Producer.Return.Successes = true
	producer, err := sarama.NewSyncProducer(h.brokers, cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, producer.Close()) }()
	random := rand.New(rand.NewPCG(1, 2))
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for began := time.Now(); ; {
		select {
		case <-ctx.Done():
			return n, nil
		case <-ticker.C:
		}
		var batch []*sarama.ProducerMessage
		for due := int64(time.Since(began).Seconds() * float64(*healthyRate)); n < due; n++ {
			msg := &sarama.ProducerMessage{
				Topic: h.topics[n%2], Key: sarama.StringEncoder(fmt.Sprint("customer-", random.IntN(1000))), Value: sarama.StringEncoder("{}"),
			}
			if random.IntN(1000) == 0 {
				later := message.NewMessage("", nil)
				delay.Message(later, delay.For(h.in(2*time.Minute)))
				for key, value := range later.Metadata {
					msg.Headers = append(msg.Headers, sarama.RecordHeader{Key: []byte(key), Value: []byte(value)})
				}
			}
			batch = append(batch, msg)
		}
		if err := producer.SendMessages(batch); err != nil {
			return n, err
		}
	}
}

// A service that works fires no alert, with the rules as they are: see healthy for what it does. The long form, an hour:
//
//	scripts/kafka.sh run -- go -C observability test -run TestHealthy -v -timeout 2h . -args -healthy 1h
func TestHealthy(t *testing.T) {
	t.Parallel()
	h := &healthy{
		t: t, prom: startPrometheus(t, max(100*time.Millisecond, min(15*time.Second, *healthyFor/100)), 1), brokers: testkit.Shared.Addrs(),
		group: brokertest.Group(t), scale: max(1, time.Hour / *healthyFor),
	}
	for i := range h.topics {
		h.topics[i] = brokertest.Topic(t)
		testkit.Check(t, brokertest.CreateTopic(h.brokers, h.topics[i], healthyPartitions))
	}
	producing, stop := context.WithTimeout(t.Context(), *healthyFor)
	defer stop()
	living, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer end()
	running.Go(func() {
		if err := h.live(living); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() { h.watch(living) })
	produced, err := h.produce(producing)
	testkit.Check(t, err)
	// The last ones may be delayed.
	if !testkit.PollFor(h.in(2*time.Minute)+testkit.Patience, func() bool { return h.settled.Load() >= produced }) {
		t.Errorf("%d records produced, %d settled", produced, h.settled.Load())
	}
	h.figures(produced)
	end()
	running.Wait()
	h.late.Wait()
	if fired := h.prom.everFired(h.group); len(fired) > 0 {
		t.Errorf("fired: %v", fired)
	}
}

// watch logs what the service does once per minute, and each alert that is about to fire.
func (h *healthy) watch(ctx context.Context) {
	tick, minute := time.NewTicker(time.Second), time.NewTicker(time.Minute)
	defer tick.Stop()
	defer minute.Stop()
	pending := map[string]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-minute.C:
			h.t.Logf("%s: %d settled, %d deploys; fired so far: %v", time.Now().Format(time.TimeOnly), h.settled.Load(), h.deploys.Load(), h.prom.everFired(h.group))
		case <-tick.C:
			now := h.prom.active(h.group, rules.StatePending)
			for _, name := range now {
				if pending[name].IsZero() {
					pending[name] = time.Now()
				}
			}
			for name, since := range maps.Clone(pending) {
				if !slices.Contains(now, name) {
					h.t.Logf("%s: %s was pending for %v", time.Now().Format(time.TimeOnly), name, time.Since(since).Round(time.Second))
					delete(pending, name)
				}
			}
		}
	}
}

// figures logs what there was, and how near the alerts were.
func (h *healthy) figures(produced int64) {
	h.t.Logf("%v, %d records, %d evaluations of the rules, %d deploys; deliveries by attempt: %d, %d, %d, %d, more %d", *healthyFor, produced,
		h.prom.evaluations(), h.deploys.Load(), h.attempts[0].Load(), h.attempts[1].Load(), h.attempts[2].Load(), h.attempts[3].Load(), h.attempts[4].Load())
	for _, metric := range []string{
		"ackpolicy_work_lag_records", "ackpolicy_stalled_seconds_max", "ackpolicy_oldest_record_attempts_max", "ackpolicy_oldest_record_seconds_max",
		"ackpolicy_slow_handlers", "ackpolicy_failing_commit_partitions", "ackpolicy_kafka_failing_seconds", "ackpolicy_paused_partitions", "ackpolicy_blocked_partitions",
	} {
		found, err := h.prom.query(h.t.Context(), fmt.Sprintf("max(max_over_time(%s[2h]))", metric), time.Now())
		testkit.Check(h.t, err)
		if len(found) > 0 {
			h.t.Logf("%s: at most %.0f", metric, found[0].F)
		}
	}
	found, err := h.prom.query(h.t.Context(), "sum(max_over_time(ackpolicy_assignments_total[2h])) or vector(0)", time.Now())
	testkit.Check(h.t, err)
	if len(found) != 1 || found[0].F == 0 {
		h.t.Errorf("Prometheus has seen nothing: %v", found)
	} else {
		h.t.Logf("partitions assigned: %.0f", found[0].F)
	}
}
