package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// commits compares the Ack policy that commits once an interval with one that does not commit.
type commits struct {
	interval time.Duration
	records  int64
	least    float64
}

func newCommits() study {
	return &commits{interval: time.Second, records: 1_000_000, least: 0.95}
}

func (c *commits) flags(set *pflag.FlagSet) {
	set.DurationVar(&c.interval, "interval", c.interval, "CommitInterval")
	set.Int64Var(&c.records, "records", c.records, "records of the topic")
}

type commitsSpec struct {
	Job      job
	Interval time.Duration
	None     bool
}

type commitsResult struct {
	Rate, CPUMicros float64
	Commits         int64 // offsets stored before the last record
}

func commitsChild(text []byte) (any, error) {
	var spec commitsSpec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, err
	}
	var stored atomic.Int64
	run := ours(ackpolicy.OrderByPartition, router(ackpolicy.Ack.Middleware), func(c *ackpolicy.SubscriberConfig) {
		c.CommitInterval = spec.Interval
		if spec.None {
			// Longer than the run. And no bound that asks for a commit before.
			c.CommitInterval, c.MaxUncommitted = time.Hour, ackpolicy.Unlimited
		}
		c.Hooks.Committed = func(e ackpolicy.CommittedEvent) {
			if e.Offset > 0 { // not the start, which is stored before the first record
				stored.Add(1)
			}
		}
	})
	r, err := measure(spec.Job, run, nil)
	return commitsResult{r.Rate, r.CPUMicros, stored.Load()}, err
}

func (c *commits) measure(b *bench) (section, error) {
	shape := bcase{records: c.records, concurrency: 1, partitions: 4, size: 100, keys: 10_000}
	topic, err := b.load(shape)
	if err != nil {
		return section{}, err
	}
	run := func(name string, none bool) func() (commitsResult, error) {
		return func() (commitsResult, error) {
			r, err := inChild[commitsResult]("commits", commitsSpec{
				Job: job{Consumer: "ackpolicy router", Brokers: b.brokers, Topic: topic, Group: group("commits", name),
					Records: c.records, Concurrency: 1, Partitions: shape.partitions, Size: shape.size, Keys: shape.keys, Limit: b.limit},
				Interval: c.interval, None: none,
			}, b.timeout, nil)
			fmt.Fprintf(os.Stderr, "commits: %-10s %10.0f/s, %d offsets stored\n", name, r.Rate, r.Commits)
			return r, err
		}
	}
	pairs := 2*b.runs + 1 // they are short, and the difference is small
	none, with, err := paired(pairs, run("none", true), run("interval", false))
	if err != nil {
		return section{}, err
	}
	rate := func(r commitsResult) float64 { return r.Rate }
	ratio := ratios(figures(with, rate), figures(none, rate))
	s := section{name: "commits", about: fmt.Sprintf(
		"The Ack policy at a commit interval of %s beside no commits at all; the handler does nothing, in a Router, one record at a time per partition; %s records of %d B, %d partitions; "+
			"medians of %d runs of each, in pairs, and of each pair's ratio", plain(c.interval), thousands(int(c.records)), shape.size, shape.partitions, pairs)}
	s.lines = [][]string{{"commits", "records/s", "min–max", "CPU s/M", "offsets stored", "ratio", "min–max"}}
	row := func(name string, rs []commitsResult, ratio ...string) {
		rates := figures(rs, rate)
		s.lines = append(s.lines, append([]string{name, thousands(int(middle(rates))), lowHigh(rates, "%.0f"),
			fmt.Sprintf("%.2f", middle(figures(rs, func(r commitsResult) float64 { return r.CPUMicros }))),
			fmt.Sprintf("%.0f", middle(figures(rs, func(r commitsResult) float64 { return float64(r.Commits) })))}, ratio...))
	}
	row("none", none, "1", "")
	row("every "+plain(c.interval), with, fmt.Sprintf("%.3f", middle(ratio)), lowHigh(ratio, "%.2f"))
	s.want(middle(ratio) >= c.least, "with commits every %s the rate is %.1f%% of that without any, at least %.0f%% wanted", plain(c.interval), 100*middle(ratio), 100*c.least)
	return s, nil
}
