package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kgo"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// waiting compares AckSync of many handlers at once on an idle partition with that behind a record that is nacked and
// does not come again.
type waiting struct {
	handlers, rounds int
	most             float64
}

func newWaiting() study { return &waiting{handlers: 64, rounds: 50, most: 1.3} }

func (w *waiting) flags(set *pflag.FlagSet) {
	set.IntVar(&w.handlers, "handlers", w.handlers, "handlers in AckSync at once")
	set.IntVar(&w.rounds, "rounds", w.rounds, "how often all of them are, in a run")
}

func (w *waiting) measure(b *bench) (section, error) {
	if w.handlers < 1 || w.rounds < 1 {
		return section{}, errors.New("--handlers and --rounds must be 1 or more")
	}
	var idle, behind []latencies
	for range b.runs {
		of, err := w.run(b.brokers)
		if err != nil {
			return section{}, err
		}
		idle, behind = append(idle, of[0]), append(behind, of[1])
	}
	p50 := func(l latencies) float64 { return l.P50 }
	ratio := ratios(figures(behind, p50), figures(idle, p50))
	s := section{name: "waiting", about: fmt.Sprintf(
		"AckSync of %d handlers at once, on an idle partition and on one whose first record is nacked and does not come again, in turn, in milliseconds; %d times per run; medians of the runs", w.handlers, w.rounds)}
	s.lines = [][]string{{"partition", "p50", "p99", "max", "p50 ÷ idle", "min–max"}}
	row := func(name string, of []latencies, ratio ...string) {
		ms := func(f func(latencies) float64) string { return fmt.Sprintf("%.2f", middle(figures(of, f))) }
		s.lines = append(s.lines, append([]string{name, ms(p50), ms(func(l latencies) float64 { return l.P99 }), ms(func(l latencies) float64 { return l.Max })}, ratio...))
	}
	row("idle", idle, "1", "")
	row("behind a nacked record", behind, fmt.Sprintf("%.2f", middle(ratio)), lowHigh(ratio, "%.2f"))
	s.want(middle(ratio) <= w.most, "behind a nacked record, AckSync's p50 is %.2f× that on an idle partition, at most %.1f× wanted", middle(ratio), w.most)
	return s, nil
}

// run takes the samples in turn: each of the two partitions is as often before the other.
func (w *waiting) run(brokers []string) (of [2]latencies, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	producer, err := newProducer(brokers, kgo.ProducerLinger(0))
	if err != nil {
		return of, err
	}
	defer producer.Close()
	var sides [2]*waitingSide
	var measured [2]*hdrhistogram.Histogram
	for i := range sides {
		side, err := w.open(ctx, brokers, producer)
		if err != nil {
			return of, err
		}
		defer func() { _ = side.sub.Close() }()
		sides[i], measured[i] = side, hdrhistogram.New(1, time.Minute.Microseconds(), 3)
	}
	if err := sides[1].hold(ctx); err != nil {
		return of, err
	}
	const warmUp = 5
	for round := range warmUp + w.rounds {
		for turn := range 2 {
			i := (round + turn) % 2
			took, err := sides[i].round(ctx, w.handlers)
			if err != nil {
				return of, err
			}
			for _, t := range took {
				if round < warmUp {
					break
				}
				if err := measured[i].RecordValue(t.Microseconds()); err != nil {
					return of, err
				}
			}
		}
	}
	return [2]latencies{latenciesOf(measured[0]), latenciesOf(measured[1])}, nil
}

// waitingSide is one of the two partitions.
type waitingSide struct {
	topic    string
	sub      *ackpolicy.Subscriber
	messages <-chan *message.Message
	producer *kgo.Client
}

func (w *waiting) open(ctx context.Context, brokers []string, producer *kgo.Client) (*waitingSide, error) {
	topic, err := newTopic(brokers, "bench-waiting", 1)
	if err != nil {
		return nil, err
	}
	sub, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
		Kafka: kafkaConfig(job{Brokers: brokers, Group: topic}), Ordering: ackpolicy.Unordered, MaxInFlight: w.handlers,
	}, errorLogger())
	if err != nil {
		return nil, err
	}
	messages, err := sub.Subscribe(ctx, topic)
	if err != nil {
		return nil, errors.Join(err, sub.Close())
	}
	return &waitingSide{topic, sub, messages, producer}, nil
}

// take sends records and returns their messages, with their deliveries.
func (s *waitingSide) take(ctx context.Context, n int) ([]*message.Message, []*ackpolicy.Delivery, error) {
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = &kgo.Record{Topic: s.topic, Value: []byte("x")}
	}
	if err := s.producer.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return nil, nil, err
	}
	var all []*message.Message
	var deliveries []*ackpolicy.Delivery
	for range n {
		msg, ok := <-s.messages
		if !ok {
			return nil, nil, errors.New("the subscription ended")
		}
		d, ok := ackpolicy.FromMessage(msg)
		if !ok {
			return nil, nil, errors.New("the message has no delivery")
		}
		all, deliveries = append(all, msg), append(deliveries, d)
	}
	return all, deliveries, nil
}

// hold nacks a record for longer than the run.
func (s *waitingSide) hold(ctx context.Context) error {
	messages, deliveries, err := s.take(ctx, 1)
	if err != nil {
		return err
	}
	if !deliveries[0].NackAfter(time.Hour) {
		return errors.New("the record cannot be nacked")
	}
	messages[0].Nack()
	return nil
}

// round has so many handlers in AckSync at once, and returns how long each was.
func (s *waitingSide) round(ctx context.Context, handlers int) ([]time.Duration, error) {
	messages, deliveries, err := s.take(ctx, handlers)
	if err != nil {
		return nil, err
	}
	time.Sleep(5 * time.Millisecond) // the fetch that follows the records is out
	took, errs := make([]time.Duration, handlers), make([]error, handlers)
	start := make(chan struct{})
	var group sync.WaitGroup
	for i, d := range deliveries {
		group.Go(func() {
			<-start
			began := time.Now()
			errs[i] = d.AckSync(ctx)
			took[i] = time.Since(began)
			messages[i].Ack()
		})
	}
	close(start)
	group.Wait()
	return took, errors.Join(errs...)
}
