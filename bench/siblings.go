package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kgo"
)

// siblings compares the speed of fast partitions beside a slow one with theirs alone.
type siblings struct {
	fast      int
	records   int
	work      time.Duration
	keys      int
	consumers []string
	least     float64
}

func newSiblings() study {
	return &siblings{
		fast: 3, records: 400_000, work: 100 * time.Millisecond, keys: 10_000,
		consumers: []string{"ackpolicy router", "stock router"}, least: 0.9,
	}
}

func (s *siblings) flags(set *pflag.FlagSet) {
	set.IntVar(&s.fast, "fast", s.fast, "fast partitions, whose handler does nothing")
	set.IntVar(&s.records, "records", s.records, "records of each partition")
	set.DurationVar(&s.work, "work", s.work, "waiting of the slow partition's handler")
}

type siblingsResult struct {
	Rate, CPUMicros float64 // of the fast partitions, and a record of theirs
	Slow            int64   // records that the slow one began meanwhile
}

type siblingsSpec struct {
	Job  job
	Slow uint32 // the slow partition
	Work time.Duration
}

func siblingsChild(text []byte) (any, error) {
	var spec siblingsSpec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, err
	}
	c, err := find(spec.Job.Consumer)
	if err != nil {
		return nil, err
	}
	var slow atomic.Int64
	r, err := measure(spec.Job, c.run, func(m *meter, value []byte) {
		if decodeStamp(value).key == spec.Slow {
			slow.Add(1)
			time.Sleep(spec.Work)
			return
		}
		m.serve()
	})
	return siblingsResult{r.Rate, r.CPUMicros, slow.Load()}, err
}

func (s *siblings) measure(b *bench) (section, error) {
	if s.fast < 1 || s.records < 1 {
		return section{}, errors.New("--fast and --records must be 1 or more")
	}
	// Both topics have all the partitions: alone, the slow one is empty.
	load := func(partitions int) (string, error) {
		topic, err := newTopic(b.brokers, "bench-siblings", s.fast+1)
		if err != nil {
			return "", err
		}
		return topic, fill(b.brokers, s.records*partitions, func(i int) *kgo.Record {
			partition := i % partitions
			return &kgo.Record{Topic: topic, Partition: int32(partition),
				Key: fmt.Appendf(nil, "key-%d", i/partitions%s.keys), Value: stamp{key: uint32(partition)}.encode(100)}
		})
	}
	alone, err := load(s.fast)
	if err != nil {
		return section{}, err
	}
	beside, err := load(s.fast + 1)
	if err != nil {
		return section{}, err
	}
	out := section{name: "siblings", about: fmt.Sprintf(
		"%d partitions whose handler does nothing, alone and beside one whose handler waits %s, all on one broker, in a Router, one record at a time per partition; "+
			"%s records per partition; records/s of the fast ones; medians of the runs, and of each pair's ratio",
		s.fast, plain(s.work), thousands(s.records))}
	out.lines = [][]string{{"consumer", "alone, records/s", "beside, records/s", "beside ÷ alone", "min–max", "CPU s/M alone", "beside", "of the slow one meanwhile"}}
	for i, w := range s.consumers {
		run := func(topic string) func() (siblingsResult, error) {
			return func() (siblingsResult, error) {
				r, err := inChild[siblingsResult]("siblings", siblingsSpec{
					Job: job{Consumer: w, Brokers: b.brokers, Topic: topic, Group: group("siblings", w),
						Records: int64(s.records * s.fast), Concurrency: 1, Partitions: s.fast + 1, Limit: b.limit},
					Slow: uint32(s.fast), Work: s.work,
				}, b.timeout, nil)
				fmt.Fprintf(os.Stderr, "siblings: %-24s %10.0f/s, and %d slow ones\n", w, r.Rate, r.Slow)
				return r, err
			}
		}
		as, bs, err := paired(b.runs, run(alone), run(beside))
		if err != nil {
			return section{}, err
		}
		rate := func(r siblingsResult) float64 { return r.Rate }
		cpu := func(rs []siblingsResult) string {
			return fmt.Sprintf("%.2f", middle(figures(rs, func(r siblingsResult) float64 { return r.CPUMicros })))
		}
		slow := middle(figures(bs, func(r siblingsResult) float64 { return float64(r.Slow) }))
		ratio := ratios(figures(bs, rate), figures(as, rate))
		out.lines = append(out.lines, []string{w, thousands(int(middle(figures(as, rate)))), thousands(int(middle(figures(bs, rate)))),
			fmt.Sprintf("%.2f", middle(ratio)), lowHigh(ratio, "%.2f"), cpu(as), cpu(bs), thousands(int(slow))})
		if i == 0 {
			out.want(middle(ratio) >= s.least && slow > 0, "beside a slow partition, %s has %.0f%% of the speed that the others have alone, at least %.0f%% wanted; the slow one continued with %.0f records",
				w, 100*middle(ratio), 100*s.least, slow)
		}
	}
	return out, nil
}
