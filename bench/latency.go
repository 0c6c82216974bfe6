package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// latency is the time from when a record was due to be sent to its handler's start.
type latency struct {
	consumers   string
	rate        float64
	work        time.Duration
	concurrency int
	partitions  int
	keys, size  int
	warmUp, run time.Duration
}

func newLatency() study {
	return &latency{
		consumers: "sarama group,franz-go group,stock router,ackpolicy router,ackpolicy key",
		rate:      2000, work: time.Millisecond, concurrency: 64, partitions: 4, keys: 10_000, size: 100,
		warmUp: time.Second / 2, run: 3 * time.Second,
	}
}

func (l *latency) flags(set *pflag.FlagSet) {
	set.StringVar(&l.consumers, "only", l.consumers, "consumers to run, by comma: those in Go")
	set.Float64Var(&l.rate, "rate", l.rate, "records per second, over all partitions")
	set.DurationVar(&l.work, "work", l.work, "the handler's waiting")
	set.IntVar(&l.concurrency, "concurrency", l.concurrency, "handlers at once, per partition")
	set.IntVar(&l.partitions, "partitions", l.partitions, "partitions")
	set.IntVar(&l.keys, "keys", l.keys, "distinct keys")
	set.IntVar(&l.size, "size", l.size, "bytes of a record's value")
	set.DurationVar(&l.run, "for", l.run, "length of a run")
}

func (l *latency) measure(b *bench) (section, error) {
	if l.rate <= 0 || l.partitions < 1 || l.keys < 1 || l.concurrency < 1 {
		return section{}, errors.New("--rate, --partitions, --keys and --concurrency must be above 0")
	}
	who := strings.Split(l.consumers, ",")
	for _, w := range who {
		if c, err := find(w); err != nil {
			return section{}, err
		} else if c.run == nil || strings.HasPrefix(w, "memory") {
			return section{}, fmt.Errorf("--only: %s does not know when a record was due", w)
		}
	}
	results := map[string][]timedResult{}
	for run := range b.runs {
		for _, w := range who {
			t := timed{
				Job: job{Consumer: w, Brokers: b.brokers, Work: l.work, Concurrency: l.concurrency,
					Partitions: l.partitions, Size: l.size, Keys: l.keys},
				Rate: l.rate, WarmUp: l.warmUp, For: l.run,
			}
			r, err := t.run(func(record int64) int64 { return record % int64(l.keys) })
			if err != nil {
				return section{}, err
			}
			results[w] = append(results[w], r)
			fmt.Fprintf(os.Stderr, "latency, run %d: %-24s p50 %.1f ms, p99 %.1f ms\n", run+1, w, r.All.P50, r.All.P99)
		}
	}
	s := section{name: "latency", about: fmt.Sprintf(
		"From when a record was due to be sent to its handler's start, in milliseconds; %s records/s for %s, evenly over %d partitions, sent by a producer beside; "+
			"the handler waits %s, %d at once per partition where the consumer can; medians of the runs, with the lowest and the highest p99 beside",
		thousands(int(l.rate)), plain(l.run), l.partitions, plain(l.work), l.concurrency)}
	s.lines = [][]string{{"consumer", "p50", "p99", "p99.9", "max", "p99 min–max"}}
	for _, w := range who {
		of := func(f func(latencies) float64) []float64 {
			return figures(results[w], func(r timedResult) float64 { return f(r.All) })
		}
		p99 := of(func(l latencies) float64 { return l.P99 })
		ms := func(f func(latencies) float64) string { return fmt.Sprintf("%.1f", middle(of(f))) }
		s.lines = append(s.lines, []string{w,
			ms(func(l latencies) float64 { return l.P50 }), fmt.Sprintf("%.1f", middle(p99)),
			ms(func(l latencies) float64 { return l.P999 }), ms(func(l latencies) float64 { return l.Max }), lowHigh(p99, "%.1f")})
	}
	return s, nil
}
