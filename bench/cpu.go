package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"github.com/spf13/pflag"
)

// cpuShares says where the processor time of a record goes, by profile.
type cpuShares struct {
	consumers []string
	records   int64
	limit     time.Duration
	least     float64
}

func newCPUShares() study {
	return &cpuShares{consumers: []string{"memory router", "sarama group", "stock router", "ackpolicy router"}, records: 3_000_000, limit: 8 * time.Second, least: 0.75}
}

func (c *cpuShares) flags(set *pflag.FlagSet) {
	set.Int64Var(&c.records, "records", c.records, "records of the topic")
	set.DurationVar(&c.limit, "limit", c.limit, "end of a run whose records take longer")
}

// cpuGroups are the rows of the table: a sample counts for the first of them that a function of its stack belongs to,
// seen from the one that runs. So what a package has the runtime or the standard library do counts for the package.
var cpuGroups = []struct{ name, prefix string }{
	{"sarama: fetch, decompress, decode", "github.com/IBM/sarama"},
	{"sarama: fetch, decompress, decode", "github.com/klauspost/compress"},
	{"sarama: fetch, decompress, decode", "github.com/pierrec/lz4"},
	{"watermill-kafka: record to message", "github.com/ThreeDotsLabs/watermill-kafka/"},
	{"Watermill: Router and message", "github.com/ThreeDotsLabs/watermill/"},
	{"ackpolicy: internal/partition", "github.com/ackpolicy/watermill-ackpolicy/internal/partition"},
	{"ackpolicy: internal/consumer", "github.com/ackpolicy/watermill-ackpolicy/internal/"},
	{"ackpolicy: task, delivery, middleware", "github.com/ackpolicy/watermill-ackpolicy"},
	{"bench: handler, and records from memory", "main."},
}

// Groups of the samples that are no package's.
const garbage, scheduling = "runtime: garbage collection", "runtime: scheduling"

// cpuShare is the processor time of a group, in microseconds per record.
type cpuShare struct{ all, allocating float64 }

func (c *cpuShares) measure(b *bench) (section, error) {
	dir, err := os.MkdirTemp("", "bench-cpu")
	if err != nil {
		return section{}, err
	}
	defer os.RemoveAll(dir)
	of, err := findCase("router")
	if err != nil {
		return section{}, err
	}
	of.records = c.records
	topic, err := b.load(of)
	if err != nil {
		return section{}, err
	}
	shares := map[string]map[string]cpuShare{}
	total := map[string]float64{}
	for run := range b.runs {
		for _, name := range c.consumers {
			j := job{Consumer: name, Brokers: b.brokers, Topic: topic, Group: group("cpu", name), Records: of.records,
				Concurrency: of.concurrency, Partitions: of.partitions, Size: of.size, Keys: of.keys, Limit: c.limit,
				Profile: filepath.Join(dir, "profile")}
			r, err := b.start(j)
			if err != nil {
				return section{}, err
			}
			if shares[name] == nil {
				shares[name] = map[string]cpuShare{}
			}
			// The mean of the runs, of the processor time that the profile's samples stand for.
			if err := addShares(shares[name], j.Profile, r.CPUMicros/float64(b.runs)); err != nil {
				return section{}, err
			}
			total[name] += r.CPUMicros / float64(b.runs)
			fmt.Fprintf(os.Stderr, "cpu, run %d: %-18s %.2f s/M\n", run+1, name, r.CPUMicros)
		}
	}
	s := section{name: "cpu", about: "Where the processor time of a record goes that passes a Router, in seconds per million records, by CPU profile: " +
		"a sample counts for the package that is nearest to the function that runs. In parentheses: the part of it in allocations. " +
		"The handler does nothing, one record at a time per partition; means of the runs"}
	s.lines = [][]string{append([]string{"group"}, c.consumers...)}
	for _, group := range groupNames() {
		line := []string{group}
		for _, name := range c.consumers {
			line = append(line, shares[name][group].String())
		}
		s.lines = append(s.lines, line)
	}
	line := []string{"all"}
	for _, name := range c.consumers {
		line = append(line, fmt.Sprintf("%.2f", total[name]))
	}
	s.lines = append(s.lines, line)
	series, ours := total["memory router"]+total["sarama group"], total["ackpolicy router"]
	s.want(series/ours >= c.least, "memory router and sarama one after the other take %.2f, %.0f%% of ackpolicy router's %.2f, at least %.0f%% wanted",
		series, 100*series/ours, ours, 100*c.least)
	return s, nil
}

func (s cpuShare) String() string {
	if s.all < 0.005 {
		return "–"
	}
	return fmt.Sprintf("%.2f (%.2f)", s.all, s.allocating)
}

func groupNames() (names []string) {
	for _, g := range cpuGroups {
		names = append(names, g.name)
	}
	return append(slices.Compact(names), scheduling, garbage)
}

// addShares divides the processor time of a record by the samples of a profile.
func addShares(shares map[string]cpuShare, file string, micros float64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := profile.Parse(f)
	if err != nil {
		return err
	}
	var total int64
	for _, sample := range p.Sample {
		total += sample.Value[len(sample.Value)-1]
	}
	for _, sample := range p.Sample {
		part := micros * float64(sample.Value[len(sample.Value)-1]) / float64(total)
		group, allocating := groupOf(functions(sample))
		share := shares[group]
		share.all += part
		if allocating {
			share.allocating += part
		}
		shares[group] = share
	}
	return nil
}

// functions of a sample's stack, that which runs first.
func functions(sample *profile.Sample) (names []string) {
	for _, at := range sample.Location {
		for _, line := range at.Line {
			names = append(names, line.Function.Name)
		}
	}
	return names
}

// groupOf returns a stack's group, and reports whether it allocates.
func groupOf(stack []string) (group string, allocating bool) {
	for _, name := range stack {
		switch {
		case strings.HasPrefix(name, "runtime.gc"), strings.HasPrefix(name, "runtime.bgsweep"), strings.HasPrefix(name, "runtime.bgscavenge"):
			return garbage, false
		case strings.HasPrefix(name, "runtime.mallocgc"): // also those for one size
			allocating = true
		}
	}
	for _, name := range stack {
		for _, g := range cpuGroups {
			if strings.HasPrefix(name, g.prefix) {
				return g.name, allocating
			}
		}
	}
	return scheduling, allocating
}
