package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kgo"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// ackSync compares AckSync on an idle partition with the round trip of a bare OffsetCommit.
type ackSync struct {
	samples int
	most    float64
}

func newAckSync() study { return &ackSync{samples: 300, most: 1.3} }

func (a *ackSync) flags(set *pflag.FlagSet) {
	set.IntVar(&a.samples, "samples", a.samples, "records of a run")
}

func (a *ackSync) measure(b *bench) (section, error) {
	if a.samples < 1 {
		return section{}, errors.New("--samples must be 1 or more")
	}
	var syncs, bares []latencies
	for range b.runs {
		s, bare, err := a.run(b.brokers)
		if err != nil {
			return section{}, err
		}
		syncs, bares = append(syncs, s), append(bares, bare)
	}
	p50 := func(l latencies) float64 { return l.P50 }
	ratio := ratios(figures(syncs, p50), figures(bares, p50))
	s := section{name: "acksync", about: fmt.Sprintf(
		"AckSync on a partition with nothing else in flight, beside the round trip of a bare OffsetCommit, in turn, in milliseconds; %d of each per run; medians of the runs", a.samples)}
	s.lines = [][]string{{"", "p50", "p99", "max", "p50 ÷ bare", "min–max"}}
	row := func(name string, of []latencies, ratio ...string) {
		ms := func(f func(latencies) float64) string { return fmt.Sprintf("%.2f", middle(figures(of, f))) }
		s.lines = append(s.lines, append([]string{name, ms(p50), ms(func(l latencies) float64 { return l.P99 }), ms(func(l latencies) float64 { return l.Max })}, ratio...))
	}
	row("OffsetCommit", bares, "1", "")
	row("AckSync", syncs, fmt.Sprintf("%.2f", middle(ratio)), lowHigh(ratio, "%.2f"))
	s.want(middle(ratio) <= a.most, "AckSync's p50 is %.2f× a bare OffsetCommit's, at most %.1f× wanted", middle(ratio), a.most)
	return s, nil
}

// run takes the samples in turn: each of the two is as often before the other.
func (a *ackSync) run(brokers []string) (syncs, bares latencies, err error) {
	topic, err := newTopic(brokers, "bench-acksync", 1)
	if err != nil {
		return syncs, bares, err
	}
	sub, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
		Kafka: kafkaConfig(job{Brokers: brokers, Group: topic}),
	}, errorLogger())
	if err != nil {
		return syncs, bares, err
	}
	defer func() { err = errors.Join(err, sub.Close()) }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	messages, err := sub.Subscribe(ctx, topic)
	if err != nil {
		return syncs, bares, err
	}
	producer, err := newProducer(brokers, kgo.ProducerLinger(0))
	if err != nil {
		return syncs, bares, err
	}
	defer producer.Close()
	bare, err := newBareCommit(brokers, topic)
	if err != nil {
		return syncs, bares, err
	}
	defer bare.client.Close()
	h := [2]*hdrhistogram.Histogram{}
	for i := range h {
		h[i] = hdrhistogram.New(1, time.Minute.Microseconds(), 3)
	}
	const warmUp = 20                 // connections, the coordinator's and the JVM's first steps
	const rest = 5 * time.Millisecond // before each sample: the fetch that follows a record is out, and all is idle
	for i := range warmUp + a.samples {
		for turn := range 2 {
			which := (i + turn) % 2
			var took time.Duration
			if which == 0 {
				took, err = ackSyncOnce(ctx, producer, topic, messages, rest)
			} else {
				time.Sleep(rest)
				took, err = bare.commit(int64(i))
			}
			if err == nil && i >= warmUp {
				err = h[which].RecordValue(took.Microseconds())
			}
			if err != nil {
				return syncs, bares, err
			}
		}
	}
	return latenciesOf(h[0]), latenciesOf(h[1]), nil
}

// ackSyncOnce sends a record and, after a rest, has it acked.
func ackSyncOnce(ctx context.Context, producer *kgo.Client, topic string, messages <-chan *message.Message, rest time.Duration) (time.Duration, error) {
	if err := producer.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr(); err != nil {
		return 0, err
	}
	msg, ok := <-messages
	if !ok {
		return 0, errors.New("the subscription ended")
	}
	defer msg.Ack()
	d, ok := ackpolicy.FromMessage(msg)
	if !ok {
		return 0, errors.New("the message has no delivery")
	}
	time.Sleep(rest)
	began := time.Now()
	err := d.AckSync(ctx)
	return time.Since(began), err
}

// bareCommit commits for a group without members, over a separate connection.
type bareCommit struct {
	client       sarama.Client
	coordinator  *sarama.Broker
	group, topic string
}

func newBareCommit(brokers []string, topic string) (*bareCommit, error) {
	client, err := sarama.NewClient(brokers, saramaConfig())
	if err != nil {
		return nil, err
	}
	c := &bareCommit{client: client, group: topic + "-bare", topic: topic}
	if c.coordinator, err = client.Coordinator(c.group); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return c, nil
}

func (c *bareCommit) commit(offset int64) (time.Duration, error) {
	request := sarama.NewOffsetCommitRequest(c.client.Config(), c.group)
	request.ConsumerGroupGeneration = sarama.GroupGenerationUndefined
	request.AddBlockWithLeaderEpoch(c.topic, 0, offset, -1, 0, "")
	began := time.Now()
	response, err := c.coordinator.CommitOffset(request)
	took := time.Since(began)
	if err == nil {
		if code := response.Errors[c.topic][0]; code != sarama.ErrNoError {
			err = code
		}
	}
	return took, err
}
