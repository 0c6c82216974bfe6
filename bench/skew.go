package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"github.com/spf13/pflag"
)

// skew has records of few frequent and many rare keys come at a fixed rate that the
// hot key can just bear, and looks at how long the rare ones wait. There is one
// partition with few handlers: where there are more lanes than the hot key's share
// allows for, hardly any other key meets it.
type skew struct {
	zipf        float64
	keys        int
	concurrency int
	work        time.Duration
	load        float64 // of the hot key's saturation rate
	cold        float64 // keys with less than this share of the records are cold
	warmUp, run time.Duration
	backlog     int64
	most        float64
	least       float64 // not below, but for the noise of the runs
}

func newSkew() study {
	return &skew{
		zipf: 1.1, keys: 10_000, concurrency: 16, work: 5 * time.Millisecond, load: 0.7, cold: 0.01,
		warmUp: 2 * time.Second, run: 6 * time.Second, backlog: 100_000, most: 0.2, least: 0.98,
	}
}

func (s *skew) flags(set *pflag.FlagSet) {
	set.Float64Var(&s.zipf, "zipf", s.zipf, "exponent of Zipf's law for the keys, above 1")
	set.IntVar(&s.keys, "keys", s.keys, "distinct keys")
	set.IntVar(&s.concurrency, "concurrency", s.concurrency, "handlers at once")
	set.DurationVar(&s.work, "work", s.work, "the handler's waiting")
	set.Float64Var(&s.load, "load", s.load, "rate, as a share of the one that saturates the hot key")
	set.DurationVar(&s.run, "for", s.run, "length of a run")
}

const ownLanes, hashedLanes = "ackpolicy key", "hash lanes"

type skewRun struct {
	timed timedResult
	full  float64 // records per second from a backlog
}

func (s *skew) measure(b *bench) (section, error) {
	shape := bcase{name: "skew", records: s.backlog, work: s.work, concurrency: s.concurrency, partitions: 1, size: 100, keys: s.keys, zipf: s.zipf}
	if err := shape.check(); err != nil {
		return section{}, err
	}
	if s.load <= 0 || s.work <= 0 || s.zipf == 0 {
		return section{}, errors.New("--load and --work must be above 0, --zipf above 1")
	}
	topic, err := b.load(shape)
	if err != nil {
		return section{}, err
	}
	shares := zipfShares(s.zipf, s.keys)
	service := sleepOf(s.work, s.concurrency)
	rate := s.load / (shares[0] * service.Seconds())
	run := func(consumer string) func() (skewRun, error) {
		return func() (r skewRun, err error) {
			j := job{Consumer: consumer, Brokers: b.brokers, Work: s.work, Concurrency: s.concurrency, Partitions: 1, Size: shape.size, Keys: s.keys}
			t := timed{Job: j, Rate: rate, WarmUp: s.warmUp, For: s.run, ColdKey: firstBelow(shares, s.cold)}
			if r.timed, err = t.run(shape.key()); err != nil {
				return r, err
			}
			j.Topic, j.Group, j.Records, j.Limit = topic, group("skew", consumer), s.backlog, b.limit
			full, err := b.start(j)
			r.full = full.Rate
			fmt.Fprintf(os.Stderr, "skew: %-14s cold p99 %.1f ms, %.0f/s from a backlog\n", consumer, r.timed.Cold.P99, r.full)
			return r, err
		}
	}
	hashed, own, err := paired(b.runs, run(hashedLanes), run(ownLanes))
	if err != nil {
		return section{}, err
	}
	out := section{name: "skew", about: fmt.Sprintf(
		"%s keys by Zipf's law with s = %g on 1 partition, %d handlers at once, which wait %s each; a queue a key beside %d lanes by hash. "+
			"At %.0f records/s, %.0f%% of what the hot key's order allows for, milliseconds from when a record was due to be sent to its handler's start: "+
			"of the hot key, with %.1f%% of the records, and of the cold ones, with less than %g%% each. "+
			"By the hash, %.1f%% of the records share the hot key's lane. And records/s from a backlog. Medians of the runs",
		thousands(s.keys), s.zipf, s.concurrency, plain(s.work), s.concurrency, rate, 100*s.load,
		100*shares[0], 100*s.cold, 100*laneShare(shares, s.concurrency))}
	out.lines = [][]string{{"consumer", "cold p50", "cold p99", "cold p99 min–max", "hot p50", "hot p99", "from a backlog, records/s", "min–max"}}
	coldP99 := func(r skewRun) float64 { return r.timed.Cold.P99 }
	full := func(r skewRun) float64 { return r.full }
	for _, c := range []struct {
		name string
		runs []skewRun
	}{{hashedLanes, hashed}, {ownLanes, own}} {
		ms := func(f func(skewRun) float64) string { return fmt.Sprintf("%.1f", middle(figures(c.runs, f))) }
		out.lines = append(out.lines, []string{c.name,
			ms(func(r skewRun) float64 { return r.timed.Cold.P50 }), ms(coldP99), lowHigh(figures(c.runs, coldP99), "%.1f"),
			ms(func(r skewRun) float64 { return r.timed.Hot.P50 }), ms(func(r skewRun) float64 { return r.timed.Hot.P99 }),
			thousands(int(middle(figures(c.runs, full)))), lowHigh(figures(c.runs, full), "%.0f")})
	}
	wait := middle(ratios(figures(own, coldP99), figures(hashed, coldP99)))
	through := middle(ratios(figures(own, full), figures(hashed, full)))
	out.want(wait <= s.most, "with a queue a key, the cold keys' p99 is %.2f× that of lanes by hash, at most %.1f× wanted", wait, s.most)
	out.want(through >= s.least, "from a backlog it handles %.2f× as many records/s, at least %g× wanted", through, s.least)
	return out, nil
}

// zipfShares is each key's share of the records, the most frequent first.
func zipfShares(s float64, keys int) []float64 {
	shares := make([]float64, keys)
	sum := 0.0
	for k := range shares {
		shares[k] = math.Pow(float64(k+1), -s)
		sum += shares[k]
	}
	for k := range shares {
		shares[k] /= sum
	}
	return shares
}

// firstBelow is the first key that has less than a share.
func firstBelow(shares []float64, share float64) uint32 {
	for k, s := range shares {
		if s < share {
			return uint32(k)
		}
	}
	return uint32(len(shares))
}

// laneShare is the share of the records that the hash sends to the hot key's lane.
func laneShare(shares []float64, lanes int) (sum float64) {
	lane := func(key int) int { return laneOf(fmt.Appendf(nil, "key-%d", key), lanes) }
	hot := lane(0)
	for k, s := range shares {
		if lane(k) == hot {
			sum += s
		}
	}
	return sum
}

// sleepOf is how long a wait takes here, with as many at once: the timers of a system are coarse.
func sleepOf(d time.Duration, at int) time.Duration {
	const times = 50
	var wg sync.WaitGroup
	began := time.Now()
	for range at {
		wg.Go(func() {
			for range times {
				time.Sleep(d)
			}
		})
	}
	wg.Wait()
	return time.Since(began) / times
}
