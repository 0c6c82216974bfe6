package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/pflag"
)

// scale compares the processor time of a record over numbers of keys and of partitions.
type scale struct {
	records     int64
	concurrency int // over all partitions
	work        time.Duration
	most        float64
}

func newScale() study { return &scale{records: 500_000, concurrency: 64, most: 1.15} }

func (s *scale) flags(set *pflag.FlagSet) {
	set.Int64Var(&s.records, "records", s.records, "records of each topic")
	set.DurationVar(&s.work, "work", s.work, "the handler's waiting")
	set.IntVar(&s.concurrency, "concurrency", s.concurrency, "handlers at once, over all partitions; a multiple of 32")
}

func (s *scale) measure(b *bench) (section, error) {
	const who = "ackpolicy key"
	if s.records < 1 || s.concurrency < 32 || s.concurrency%32 != 0 {
		return section{}, errors.New("--records must be 1 or more, and --concurrency a multiple of 32")
	}
	shape := func(keys, partitions int) bcase {
		return bcase{name: "scale", records: s.records, work: s.work, concurrency: s.concurrency / partitions, partitions: partitions, size: 100, keys: keys}
	}
	byKeys := []bcase{shape(10, 4), shape(100, 4), shape(1000, 4), shape(10_000, 4), shape(100_000, 4)}
	byPartitions := []bcase{shape(10_000, 1), shape(10_000, 4), shape(10_000, 32)}
	type point struct{ keys, partitions int }
	results := map[point][]result{}
	for run := range b.runs {
		cases := append(slices.Clone(byKeys), byPartitions...)
		first := run % len(cases) // no case has the same place in each run
		for _, c := range append(slices.Clone(cases[first:]), cases[:first]...) {
			k := point{c.keys, c.partitions}
			if len(results[k]) > run { // it is in both lists
				continue
			}
			topic, err := b.load(c)
			if err != nil {
				return section{}, err
			}
			j := job{Consumer: who, Brokers: b.brokers, Topic: topic, Group: group("scale", who), Records: c.records, Work: c.work,
				Concurrency: c.concurrency, Partitions: c.partitions, Size: c.size, Keys: c.keys, Limit: b.limit}
			if b.profile != "" && run == b.runs-1 {
				j.Profile = fmt.Sprintf("%s/scale-%dkeys-%dp.pprof", b.profile, c.keys, c.partitions)
			}
			r, err := b.start(j)
			if err != nil {
				return section{}, err
			}
			results[k] = append(results[k], r)
			fmt.Fprintf(os.Stderr, "scale, run %d: %7d keys, %2d partitions: %10.0f/s, %.2f CPU µs\n", run+1, c.keys, c.partitions, r.Rate, r.CPUMicros)
		}
	}
	out := section{name: "scale", about: fmt.Sprintf(
		"Processor time per record over keys and partitions, with %d handlers at once over all partitions; %s, the handler %s; %s records of 100 B; medians of the runs, and of what each is beside the mean of its run: "+
			"the machine is not as fast in each",
		s.concurrency, who, shape(1, 1).handler(), thousands(int(s.records)))}
	out.lines = [][]string{{"keys", "partitions", "handlers per partition", "CPU s/M", "min–max", "× mean", "allocs", "records/s"}}
	means := make([]float64, b.runs)
	for _, rs := range results {
		for run, r := range rs {
			means[run] += r.CPUMicros / float64(len(results))
		}
	}
	table := func(cases []bcase) (cpus []float64) {
		for _, c := range cases {
			rs := results[point{c.keys, c.partitions}]
			all := figures(rs, func(r result) float64 { return r.CPUMicros })
			beside := make([]float64, len(all))
			for run, cpu := range all {
				beside[run] = cpu / means[run]
			}
			cpus = append(cpus, middle(beside))
			out.lines = append(out.lines, []string{thousands(c.keys), fmt.Sprint(c.partitions), fmt.Sprint(c.concurrency),
				fmt.Sprintf("%.2f", middle(all)), lowHigh(all, "%.2f"), fmt.Sprintf("%.2f", middle(beside)),
				fmt.Sprintf("%.1f", median(rs, func(r result) float64 { return r.Allocs })), thousands(int(median(rs, func(r result) float64 { return r.Rate })))})
		}
		return cpus
	}
	keys, partitions := table(byKeys), table(byPartitions)
	for _, w := range []struct {
		over string
		cpus []float64
	}{{"keys", keys}, {"partitions", partitions}} {
		spread := slices.Max(w.cpus) / slices.Min(w.cpus)
		out.want(spread <= s.most, "over the numbers of %s the dearest record takes %.2f× the processor time of the cheapest, at most %.2f× wanted", w.over, spread, s.most)
	}
	return out, nil
}
