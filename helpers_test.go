package ackpolicy_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// patience is how long a test waits for what has to happen.
const patience = 30 * time.Second

var errBoom = errors.New("boom")

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// poll waits until the condition holds; false: in vain.
func poll(holds func() bool) bool { return pollFor(patience, holds) }

func pollFor(d time.Duration, holds func() bool) bool {
	for deadline := time.Now().Add(d); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	if !poll(holds) {
		t.Fatalf("waited %v in vain: %s", patience, what)
	}
}

// await waits for a value, or for the channel's end.
func await[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("waited %v in vain: %s", patience, what)
		panic("unreachable")
	}
}

// awaitTwo waits for a group of two members that has its assignment.
func awaitTwo(t testing.TB, broker *brokertest.Broker, group string) {
	t.Helper()
	eventually(t, "a group of two", func() bool {
		n, state, err := brokertest.Members(broker.Addrs(), group)
		return err == nil && n == 2 && state == "Stable"
	})
}

// until is await for a handler: it ends with the handler's context.
func until[T any](ctx context.Context, ch <-chan T) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// newTopic makes a topic whose partition 0 holds the records.
func newTopic(t testing.TB, partitions int32, records ...brokertest.Record) string {
	t.Helper()
	topic := brokertest.Topic(t)
	check(t, brokertest.CreateTopic(shared.Addrs(), topic, partitions))
	produce(t, topic, 0, records...)
	return topic
}

func produce(t testing.TB, topic string, partition int32, records ...brokertest.Record) {
	t.Helper()
	_, err := brokertest.Produce(shared.Addrs(), topic, partition, records...)
	check(t, err)
}

// anHourAgo is a record's own timestamp, not so old that the broker's retention, which
// goes by timestamps, deletes the record in mid-test.
func anHourAgo() time.Time { return time.Now().Add(-time.Hour).Truncate(time.Millisecond) }

// filledTopic is newTopic with n numbered records in each partition.
func filledTopic(t testing.TB, partitions int32, n int) string {
	t.Helper()
	topic := newTopic(t, partitions)
	for p := range partitions {
		produce(t, topic, p, numbered(n)...)
	}
	return topic
}

// numbered makes records without keys: 0, 1, …
func numbered(n int) []brokertest.Record {
	records := make([]brokertest.Record, n)
	for i := range records {
		records[i].Value = fmt.Append(nil, i)
	}
	return records
}

// keyed makes a record a key, in order.
func keyed(keys ...string) []brokertest.Record {
	records := make([]brokertest.Record, len(keys))
	for i, key := range keys {
		records[i] = brokertest.KeyValue(key, fmt.Sprint(i))
	}
	return records
}

// wantCommitted asserts the offset that the broker stores.
func wantCommitted(t testing.TB, group, topic string, partition int32, want int64) {
	t.Helper()
	got, err := brokertest.Committed(shared.Addrs(), group, topic, partition)
	check(t, err)
	if got != want {
		t.Errorf("stored offset of partition %d: got %d, want %d", partition, got, want)
	}
}

func waitCommitted(t testing.TB, group, topic string, partition int32, want int64) {
	t.Helper()
	check(t, brokertest.WaitCommitted(shared.Addrs(), group, topic, partition, want, patience))
	wantCommitted(t, group, topic, partition, want)
}

type change = func(*ackpolicy.SubscriberConfig)

// config is what tests run with: Watermill's own defaults, in a hurry.
func config(group string, changes ...change) ackpolicy.SubscriberConfig {
	cfg := kafka.DefaultSaramaSubscriberConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	cfg.Consumer.MaxWaitTime = 100 * time.Millisecond
	cfg.Consumer.Group.Heartbeat.Interval = 200 * time.Millisecond
	cfg.Consumer.Group.Session.Timeout = 6 * time.Second
	cfg.Consumer.Group.Rebalance.Timeout = 20 * time.Second
	c := ackpolicy.SubscriberConfig{
		Kafka: kafka.SubscriberConfig{
			Brokers:               shared.Addrs(),
			OverwriteSaramaConfig: cfg,
			ConsumerGroup:         group,
			NackResendSleep:       10 * time.Millisecond,
		},
		CommitInterval: 100 * time.Millisecond,
	}
	for _, change := range changes {
		change(&c)
	}
	return c
}

func drainTimeout(d time.Duration) change {
	return func(c *ackpolicy.SubscriberConfig) { c.DrainTimeout = d }
}

func ordering(o ackpolicy.Ordering, maxInFlight int) change {
	return func(c *ackpolicy.SubscriberConfig) { c.Ordering, c.MaxInFlight = o, maxInFlight }
}

func initial(offset int64) change {
	return func(c *ackpolicy.SubscriberConfig) { c.Kafka.OverwriteSaramaConfig.Consumer.Offsets.Initial = offset }
}

func strategy(s sarama.BalanceStrategy) change {
	return func(c *ackpolicy.SubscriberConfig) {
		c.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{s}
	}
}

// protocols are the two ways in which a group rebalances.
func protocols() map[string]change {
	return map[string]change{
		"eager":       strategy(sarama.NewBalanceStrategyRange()),
		"cooperative": strategy(sarama.NewBalanceStrategyCooperativeSticky()),
	}
}

func newSubscriber(t testing.TB, cfg ackpolicy.SubscriberConfig, logger watermill.LoggerAdapter) *ackpolicy.Subscriber {
	t.Helper()
	sub, err := ackpolicy.NewSubscriber(cfg, logger)
	check(t, err)
	t.Cleanup(func() {
		if err := sub.Close(); err != nil {
			t.Error("Close:", err)
		}
	})
	return sub
}

// journal holds deliveries in the order in which their handlers started.
type journal struct {
	mu         sync.Mutex
	deliveries []*ackpolicy.Delivery
}

func (j *journal) add(d *ackpolicy.Delivery) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.deliveries = append(j.deliveries, d)
}

func (j *journal) all() []*ackpolicy.Delivery {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.deliveries)
}

// names lists the deliveries as offset#attempt.
// find returns a delivery, nil if it was not made.
func (j *journal) find(offset int64, attempt int) *ackpolicy.Delivery {
	for _, d := range j.all() {
		if d.Offset() == offset && d.Attempt() == attempt {
			return d
		}
	}
	return nil
}

func (j *journal) names() []string {
	var names []string
	for _, d := range j.all() {
		names = append(names, name(d))
	}
	return names
}

func name(d *ackpolicy.Delivery) string { return fmt.Sprintf("%d#%d", d.Offset(), d.Attempt()) }

// wait waits for the n-th delivery and returns it.
func (j *journal) wait(t testing.TB, n int) *ackpolicy.Delivery {
	t.Helper()
	eventually(t, fmt.Sprintf("delivery %d", n), func() bool { return len(j.all()) >= n })
	return j.all()[n-1]
}

func (j *journal) want(t testing.TB, want ...string) {
	t.Helper()
	if got := j.names(); !slices.Equal(got, want) {
		t.Errorf("deliveries: got %v, want %v", got, want)
	}
}

// service is a Router that runs.
type service struct {
	journal
	router *message.Router
	log    *log
	ended  chan struct{}
}

func newService(t testing.TB) *service {
	t.Helper()
	logger := newLog(t)
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	check(t, err)
	return &service{router: router, log: logger, ended: make(chan struct{})}
}

func (s *service) start(t testing.TB) {
	t.Helper()
	failed := make(chan error, 1)
	go func() {
		defer close(s.ended)
		if err := s.router.Run(context.Background()); err != nil {
			failed <- err
		}
	}()
	t.Cleanup(s.stop)
	select {
	case <-s.router.Running():
	case err := <-failed:
		t.Fatal("Run:", err)
	}
}

// stop stops the service as a deploy does, and waits for its end.
func (s *service) stop() {
	_ = s.router.Close()
	<-s.ended
}

type handle = func(msg *message.Message, d *ackpolicy.Delivery) error

// consume runs a service with one handler behind the middlewares, the first of which is the outermost.
func consume(t testing.TB, cfg ackpolicy.SubscriberConfig, topic string, h handle, mw ...message.HandlerMiddleware) *service {
	t.Helper()
	s := newService(t)
	s.router.AddMiddleware(mw...)
	s.router.AddConsumerHandler("handler", topic, newSubscriber(t, cfg, s.log), s.recorded(h))
	s.start(t)
	return s
}

// recorded puts the deliveries into the journal before h handles them.
func (j *journal) recorded(h handle) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		d, ok := ackpolicy.FromMessage(msg)
		if !ok {
			return errors.New("a message without a Delivery")
		}
		j.add(d)
		return h(msg, d)
	}
}

// log keeps what is logged, and prints it if the test fails.
type log struct {
	fields watermill.LogFields
	lines  *lines
}

type lines struct {
	mu  sync.Mutex
	all []line
}

type line struct{ level, text string }

func newLog(t testing.TB) *log {
	l := &log{lines: &lines{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", strings.Join(l.at("error", "info"), "\n"))
		}
	})
	return l
}

func (l *log) write(level, msg string, err error, fields watermill.LogFields) {
	text := fmt.Sprintf("%s %s: %s", time.Now().Format("05.000"), level, msg)
	if err != nil {
		text += " err=" + err.Error()
	}
	all := l.fields.Add(fields)
	for _, key := range slices.Sorted(maps.Keys(all)) {
		text += fmt.Sprintf(" %s=%v", key, all[key])
	}
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	l.lines.all = append(l.lines.all, line{level, text})
}

func (l *log) Error(msg string, err error, fields watermill.LogFields) {
	l.write("error", msg, err, fields)
}
func (l *log) Info(msg string, fields watermill.LogFields)  { l.write("info", msg, nil, fields) }
func (l *log) Debug(msg string, fields watermill.LogFields) { l.write("debug", msg, nil, fields) }
func (l *log) Trace(string, watermill.LogFields)            {}
func (l *log) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return &log{fields: l.fields.Add(fields), lines: l.lines}
}

// at returns the lines of the levels.
func (l *log) at(levels ...string) []string {
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	var texts []string
	for _, line := range l.lines.all {
		if slices.Contains(levels, line.level) {
			texts = append(texts, line.text)
		}
	}
	return texts
}

// with returns those of the lines that contain all the words.
func with(texts []string, words ...string) []string {
	var found []string
	for _, text := range texts {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(text, word) }) {
			found = append(found, text)
		}
	}
	return found
}
