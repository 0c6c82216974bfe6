package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kgo"
)

// rebalance measures how long deliveries pause when a member joins a group that is at work, and when it leaves.
type rebalance struct {
	consumers   string
	partitions  int
	concurrency int
	rate        float64
	work        time.Duration
	settle      time.Duration
}

func newRebalance() study {
	return &rebalance{
		consumers:  "stock router,ackpolicy router,ackpolicy router cooperative,ackpolicy key,ppc key,spring batch",
		partitions: 8, concurrency: 16, rate: 2000, work: time.Millisecond, settle: 6 * time.Second,
	}
}

func (r *rebalance) flags(set *pflag.FlagSet) {
	set.StringVar(&r.consumers, "only", r.consumers, "consumers to run, by comma")
	set.IntVar(&r.partitions, "partitions", r.partitions, "partitions")
	set.IntVar(&r.concurrency, "concurrency", r.concurrency, "handlers at once, per partition")
	set.Float64Var(&r.rate, "rate", r.rate, "records per second, over all partitions")
	set.DurationVar(&r.work, "work", r.work, "the handler's waiting")
	set.DurationVar(&r.settle, "settle", r.settle, "how long is watched after a change: longer than two heartbeats")
}

func (r *rebalance) measure(b *bench) (section, error) {
	if r.partitions < 3 || r.concurrency < 1 || r.rate <= 0 {
		return section{}, errors.New("--partitions must be 3 or more, --concurrency 1 or more, --rate above 0")
	}
	names, err := able(strings.Split(r.consumers, ","))
	if err != nil {
		return section{}, err
	}
	joins, leaves := map[string][]gap{}, map[string][]gap{}
	for run := range b.runs {
		for _, name := range names { // in turn: a drift of the machine hits all alike
			join, leave, err := r.run(b.brokers, name)
			if err != nil {
				return section{}, err
			}
			joins[name], leaves[name] = append(joins[name], join), append(leaves[name], leave)
			fmt.Fprintf(os.Stderr, "rebalance, run %d: %-28s join %.0f ms (all %.0f), leave %.0f ms (all %.0f)\n",
				run+1, name, join.worst, join.all, leave.worst, leave.all)
		}
	}
	s := section{name: "rebalance", about: fmt.Sprintf(
		"A third member joins a group of two that is at work, and leaves gracefully; %s records/s over %d partitions; the handler waits %s. "+
			"The longest time without a delivery, in milliseconds: of the partition with the longest one, and of all partitions at once; medians of the runs",
		thousands(int(r.rate)), r.partitions, plain(r.work))}
	s.lines = [][]string{{"consumer", "join: a partition", "min–max", "all at once", "leave: a partition", "min–max", "all at once"}}
	for _, name := range names {
		line := []string{name}
		for _, of := range [][]gap{joins[name], leaves[name]} {
			worst := figures(of, func(p gap) float64 { return p.worst })
			all := figures(of, func(p gap) float64 { return p.all })
			line = append(line, fmt.Sprintf("%.0f", middle(worst)), lowHigh(worst, "%.0f"), fmt.Sprintf("%.0f", middle(all)))
		}
		s.lines = append(s.lines, line)
	}
	return s, nil
}

// gap is the longest time without a delivery, in milliseconds.
type gap struct{ worst, all float64 }

// pauses notes when records come.
type pauses struct {
	mu      sync.Mutex
	last    []time.Time // of each partition
	any     time.Time
	longest gap
}

// at notes a record.
func (p *pauses) at(partition int, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note(partition, now)
	p.last[partition], p.any = now, now
}

func (p *pauses) note(partition int, now time.Time) {
	p.longest.worst = max(p.longest.worst, millis(now.Sub(p.last[partition])))
	p.longest.all = max(p.longest.all, millis(now.Sub(p.any)))
}

// began reports whether each partition has had a record.
func (p *pauses) began() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !slices.ContainsFunc(p.last, time.Time.IsZero)
}

// take returns the pauses since the last call. One that has not ended counts until now.
func (p *pauses) take(now time.Time) gap {
	p.mu.Lock()
	defer p.mu.Unlock()
	for partition := range p.last {
		p.note(partition, now)
	}
	found := p.longest
	p.longest = gap{}
	return found
}

// run has a member join and leave.
func (r *rebalance) run(brokers []string, name string) (join, leave gap, err error) {
	topic, err := newTopic(brokers, "bench-rebalance", r.partitions)
	if err != nil {
		return join, leave, err
	}
	watch := &pauses{last: make([]time.Time, r.partitions)}
	j := job{Consumer: name, Brokers: brokers, Topic: topic, Group: group("rebalance", name),
		Work: r.work, Concurrency: r.concurrency, Partitions: r.partitions}
	if strings.HasPrefix(name, "spring") {
		j.Partitions = 1 // it has as many consumers, and the others have one
	}
	begin := func() (*service, error) {
		return serve(j, func(number int64) { watch.at(int(number)%r.partitions, time.Now()) })
	}
	ctx, cancel := context.WithCancel(context.Background())
	produced := make(chan error, 1)
	go func() { produced <- r.produce(ctx, brokers, topic) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-produced)
	}()
	for range 2 {
		s, err := begin()
		if err != nil {
			return join, leave, err
		}
		defer s.kill()
		if _, err := s.started(); err != nil {
			return join, leave, err
		}
	}
	for deadline := time.Now().Add(serviceTimeout); !watch.began(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return join, leave, fmt.Errorf("%s: not all partitions are read", name)
		}
	}
	time.Sleep(r.settle)
	watch.take(time.Now())
	third, err := begin()
	if err != nil {
		return join, leave, err
	}
	defer third.kill()
	if _, err := third.started(); err != nil {
		return join, leave, err
	}
	time.Sleep(r.settle)
	join = watch.take(time.Now())
	if _, _, err := third.stop(); err != nil {
		return join, leave, err
	}
	time.Sleep(r.settle)
	return join, watch.take(time.Now()), nil
}

// produce sends numbered records at the rate until ctx ends: record i to partition i mod n.
func (r *rebalance) produce(ctx context.Context, brokers []string, topic string) error {
	cl, err := newProducer(brokers, kgo.ProducerLinger(0))
	if err != nil {
		return err
	}
	defer cl.Close()
	var once sync.Once
	var failed error
	_ = pace(ctx, r.rate, math.MaxInt64, func(i int64, _ time.Time) {
		cl.Produce(context.Background(), &kgo.Record{
			Topic: topic, Partition: int32(i % int64(r.partitions)), Key: fmt.Appendf(nil, "key-%d", i%10_000), Value: stamp{key: uint32(i)}.encode(100),
		}, func(_ *kgo.Record, err error) {
			if err != nil {
				once.Do(func() { failed = err })
			}
		})
	})
	return errors.Join(cl.Flush(context.Background()), failed)
}
