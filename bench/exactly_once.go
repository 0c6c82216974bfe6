package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kgo"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// transactionInterval is the default of ackpolicy.Transactions; ppc gets the same.
const transactionInterval = 100 * time.Millisecond

// copies is a Router whose handler publishes what it gets to the job's output.
func copies(publisher func(message.Subscriber, job) (message.Publisher, error), mw ...message.HandlerMiddleware) reader {
	return func(ctx context.Context, sub message.Subscriber, j job, m *meter) error {
		pub, err := publisher(sub, j)
		if err != nil {
			return err
		}
		r, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
		if err != nil {
			return err
		}
		r.AddMiddleware(mw...)
		r.AddHandler("bench", j.Topic, sub, j.Output, pub, func(msg *message.Message) ([]*message.Message, error) {
			m.handle(msg.Payload)
			return message.Messages{message.NewMessageWithContext(msg.Context(), msg.UUID, msg.Payload)}, nil
		})
		go func() {
			<-m.done
			_ = r.Close()
		}()
		return r.Run(ctx)
	}
}

// published is watermill-kafka's publisher, which waits for each message until all replicas have it, as in a transaction.
func published(_ message.Subscriber, j job) (message.Publisher, error) {
	cfg := kafka.DefaultSaramaSyncPublisherConfig()
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	return kafka.NewPublisher(kafka.PublisherConfig{Brokers: j.Brokers, Marshaler: kafka.DefaultMarshaler{}, OverwriteSaramaConfig: cfg}, watermill.NopLogger{})
}

// asynchronous publishes as transactions do, without them, and does not wait: a record is acked once all replicas have
// its output. It needs the policy Manual.
type asynchronous struct {
	producer sarama.AsyncProducer
	results  sync.WaitGroup
}

func newAsynchronous(_ message.Subscriber, j job) (message.Publisher, error) {
	cfg := sarama.NewConfig()
	cfg.Producer.Idempotent, cfg.Producer.RequiredAcks, cfg.Net.MaxOpenRequests = true, sarama.WaitForAll, 1
	cfg.Producer.Flush.Frequency, cfg.Producer.Return.Successes = time.Millisecond, true
	producer, err := sarama.NewAsyncProducer(j.Brokers, cfg)
	if err != nil {
		return nil, err
	}
	a := &asynchronous{producer: producer}
	a.results.Go(func() {
		for m := range producer.Successes() {
			m.Metadata.(*ackpolicy.Delivery).Ack()
		}
	})
	a.results.Go(func() {
		for failed := range producer.Errors() {
			failed.Msg.Metadata.(*ackpolicy.Delivery).Nack()
		}
	})
	return a, nil
}

func (a *asynchronous) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		d, ok := ackpolicy.FromMessage(msg)
		if !ok {
			return errors.New("no delivery")
		}
		m, err := kafka.DefaultMarshaler{}.Marshal(topic, msg)
		if err != nil {
			return err
		}
		m.Metadata = d
		a.producer.Input() <- m
	}
	return nil
}

func (a *asynchronous) Close() error {
	a.producer.AsyncClose()
	a.results.Wait()
	return nil
}

func joined(sub message.Subscriber, _ job) (message.Publisher, error) {
	return sub.(*ackpolicy.Subscriber).Publisher(kafka.PublisherConfig{})
}

func transactions(c *ackpolicy.SubscriberConfig) {
	c.Transactions = &ackpolicy.Transactions{Interval: transactionInterval}
}

// exactlyOnce compares handlers whose output is part of a transaction with at least once.
type exactlyOnce struct {
	consumers                     string
	records                       int64
	concurrency, partitions, size int
	work, limit, latency, warm    time.Duration
	rate                          float64
	least, most                   float64
}

func newExactlyOnce() study {
	return &exactlyOnce{
		consumers: "stock router published,ackpolicy key published,ackpolicy key async,ackpolicy key transactions,ppc key transactions,spring batch transactions,spring record transactions",
		records:   200_000, concurrency: 64, partitions: 4, size: 100, work: time.Millisecond,
		limit: 6 * time.Second, rate: 1000, latency: 4 * time.Second, warm: 6 * time.Second,
		least: 0.8, most: 2.5,
	}
}

func (e *exactlyOnce) flags(set *pflag.FlagSet) {
	set.StringVar(&e.consumers, "only", e.consumers, "consumers to run, by comma")
	set.Int64Var(&e.records, "records", e.records, "records of the topic")
	set.DurationVar(&e.work, "work", e.work, "the handler's waiting")
	set.IntVar(&e.concurrency, "concurrency", e.concurrency, "handlers at once, per partition")
	set.IntVar(&e.partitions, "partitions", e.partitions, "partitions")
	set.IntVar(&e.size, "size", e.size, "bytes of a record's value, and of its output's")
	set.DurationVar(&e.limit, "limit", e.limit, "end of a run from a backlog whose records take longer")
	set.Float64Var(&e.rate, "rate", e.rate, "records per second, where the latency is measured")
	set.DurationVar(&e.latency, "for", e.latency, "how long the latency is measured")
	set.DurationVar(&e.warm, "warm", e.warm, "unmeasured run before, in a JVM")
}

// atLeastOnce is what exactly is compared with: it publishes in the same way.
const atLeastOnce, exactly = "ackpolicy key async", "ackpolicy key transactions"

// copied is one run of one consumer.
type copied struct {
	rate, cpu float64
	latency   latencies // zero: the rate is too high for it
	twice     int
}

func (e *exactlyOnce) measure(b *bench) (section, error) {
	if e.records < 1 || e.concurrency < 1 || e.partitions < 1 || e.size < stampSize || e.rate <= 0 {
		return section{}, fmt.Errorf("--records, --concurrency and --partitions must be 1 or more, --size %d or more, --rate above 0", stampSize)
	}
	names, err := able(strings.Split(e.consumers, ","))
	if err != nil {
		return section{}, err
	}
	backlog, err := e.topic(b.brokers, int(e.records), warmUp)
	if err != nil {
		return section{}, err
	}
	results := map[string][]copied{}
	for run := range b.runs {
		for _, name := range names { // in turn: a drift of the machine hits all alike
			r, err := e.run(b.brokers, name, backlog)
			if err != nil {
				return section{}, err
			}
			results[name] = append(results[name], r)
			fmt.Fprintf(os.Stderr, "exactly-once, run %d: %-28s %7.0f/s, p99 %.0f ms, %d twice\n", run+1, name, r.rate, r.latency.P99, r.twice)
		}
	}
	return e.section(names, results), nil
}

func (e *exactlyOnce) section(names []string, results map[string][]copied) section {
	s := section{name: "exactly-once", about: fmt.Sprintf(
		"A handler waits %s and publishes one output of %d B for each record, %d at once per partition where the consumer can, %d partitions. "+
			"From a backlog of %s records, to its end or for %s: outputs per second, as a reader with read_committed sees them. "+
			"At %s records/s, where the consumer can: from when a record was due to be sent until its output is visible, in milliseconds. Medians of the runs",
		plain(e.work), e.size, e.concurrency, e.partitions, thousands(int(e.records)), plain(e.limit), thousands(int(e.rate)))}
	s.lines = [][]string{{"consumer", "records/s", "min–max", "÷ at least once", "CPU s/M", "p50", "p99", "p99 min–max", "twice", guarantee}}
	rate := func(c copied) float64 { return c.rate }
	base := figures(results[atLeastOnce], rate)
	for _, name := range names {
		rs := results[name]
		rates := figures(rs, rate)
		ratio := "–"
		if len(base) > 0 {
			ratio = fmt.Sprintf("%.2f", middle(ratios(rates, base)))
		}
		p50, p99, spread := "–", "–", "–"
		if slowest := figures(rs, func(c copied) float64 { return c.latency.P99 }); middle(slowest) > 0 {
			p50 = fmt.Sprintf("%.0f", middle(figures(rs, func(c copied) float64 { return c.latency.P50 })))
			p99, spread = fmt.Sprintf("%.0f", middle(slowest)), lowHigh(slowest, "%.0f")
		}
		twice := 0
		for _, r := range rs {
			twice += r.twice
		}
		c, _ := find(name)
		s.lines = append(s.lines, []string{name, thousands(int(middle(rates))), lowHigh(rates, "%.0f"), ratio,
			fmt.Sprintf("%.1f", middle(figures(rs, func(c copied) float64 { return c.cpu }))), p50, p99, spread, fmt.Sprint(twice), c.guarantee})
	}
	if ours := results[exactly]; len(ours) > 0 && len(base) > 0 {
		ratio := middle(ratios(figures(ours, rate), base))
		s.want(ratio >= e.least, "with transactions %.0f%% of the rate of at least once, at least %.0f%% wanted", 100*ratio, 100*e.least)
		p99 := middle(figures(ours, func(c copied) float64 { return c.latency.P99 }))
		most := e.most * millis(transactionInterval)
		s.want(p99 > 0 && p99 <= most, "p99 from input to visible output is %.0f ms, at most %.0f ms wanted: %.1f intervals", p99, most, e.most)
	}
	return s
}

// topic is filled with numbered records.
func (e *exactlyOnce) topic(brokers []string, records int, kind byte) (string, error) {
	topic, err := newTopic(brokers, "bench-exactly-once", e.partitions)
	if err != nil || records == 0 {
		return topic, err
	}
	return topic, fill(brokers, records, func(i int) *kgo.Record { return e.record(topic, i, stamp{kind: kind}) })
}

func (e *exactlyOnce) record(topic string, i int, s stamp) *kgo.Record {
	s.key = uint32(i)
	return &kgo.Record{Topic: topic, Partition: int32(i % e.partitions), Key: fmt.Appendf(nil, "key-%d", i%10_000), Value: s.encode(e.size)}
}

// begin starts a consumer, and a judge that reads what it publishes.
func (e *exactlyOnce) begin(brokers []string, name, topic, backlog string) (*service, *outputs, error) {
	output, err := newTopic(brokers, "bench-output", e.partitions)
	if err != nil {
		return nil, nil, err
	}
	judge, err := newOutputs(brokers, output)
	if err != nil {
		return nil, nil, err
	}
	s, err := serve(job{Consumer: name, Brokers: brokers, Topic: topic, Output: output, Group: group("exactly-once", name), Records: e.records,
		Work: e.work, Concurrency: e.concurrency, Partitions: e.partitions, Warm: e.warm, WarmTopic: backlog}, nil)
	if err != nil {
		return nil, nil, errors.Join(err, judge.close())
	}
	return s, judge, nil
}

func (e *exactlyOnce) run(brokers []string, name, backlog string) (copied, error) {
	r, err := e.runBacklog(brokers, name, backlog)
	const spare = 1.5 // what a consumer needs to have, so that a record does not wait for those before it
	if err != nil || r.rate < spare*e.rate {
		return r, err
	}
	late, twice, err := e.runPaced(brokers, name, backlog)
	r.latency, r.twice = late, r.twice+twice
	return r, err
}

func (e *exactlyOnce) runBacklog(brokers []string, name, backlog string) (r copied, err error) {
	s, judge, err := e.begin(brokers, name, backlog, backlog)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, judge.close()) }()
	defer s.kill()
	if err := judge.await(s, func(o *outputs) bool { return o.visible > 0 }); err != nil {
		return r, err
	}
	before, err := s.cpu()
	if err != nil {
		return r, err
	}
	end := time.Now().Add(e.limit)
	if err := judge.await(s, func(o *outputs) bool { return int64(o.visible) >= e.records || time.Now().After(end) }); err != nil {
		return r, err
	}
	after, err := s.cpu()
	if err != nil {
		return r, err
	}
	judge.mu.Lock()
	defer judge.mu.Unlock()
	n := float64(judge.visible - judge.atFirst)
	r.rate = n / judge.last.Sub(judge.first).Seconds()
	r.cpu = (after - before).Seconds() * 1e6 / n
	r.twice = judge.twice
	return r, nil
}

// runPaced sends records at the rate, and measures when their output is visible.
func (e *exactlyOnce) runPaced(brokers []string, name, backlog string) (late latencies, twice int, err error) {
	topic, err := e.topic(brokers, e.partitions, prime)
	if err != nil {
		return late, 0, err
	}
	s, judge, err := e.begin(brokers, name, topic, backlog)
	if err != nil {
		return late, 0, err
	}
	defer func() { err = errors.Join(err, judge.close()) }()
	defer s.kill()
	if err := judge.await(s, func(o *outputs) bool { return o.visible == e.partitions }); err != nil {
		return late, 0, err
	}
	cl, err := newProducer(brokers, kgo.ProducerLinger(0))
	if err != nil {
		return late, 0, err
	}
	defer cl.Close()
	const lead = time.Second // not measured
	unmeasured := int64(e.rate * lead.Seconds())
	total := unmeasured + int64(e.rate*e.latency.Seconds())
	var once sync.Once
	var failed error
	err = pace(context.Background(), e.rate, total, func(i int64, due time.Time) {
		kind := byte(measured)
		if i < unmeasured {
			kind = warmUp
		}
		cl.Produce(context.Background(), e.record(topic, e.partitions+int(i), stamp{due: due, kind: kind}), func(_ *kgo.Record, err error) {
			if err != nil {
				once.Do(func() { failed = err })
			}
		})
	})
	if err := errors.Join(err, cl.Flush(context.Background()), failed); err != nil {
		return late, 0, err
	}
	if err := judge.await(s, func(o *outputs) bool { return int64(o.visible) >= int64(e.partitions)+total }); err != nil {
		return late, 0, err
	}
	judge.mu.Lock()
	defer judge.mu.Unlock()
	return latenciesOf(judge.late), judge.twice, nil
}
