package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kgo"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// kills measures what kill -9 of a member at work has come again.
type kills struct {
	members, partitions, keys int
	session                   time.Duration
	seed                      uint64
	slow, fast                killLoad
}

// killLoad is what comes, and what handlers do with it.
type killLoad struct {
	Kills       int // of each consumer, over all its runs
	Rate        int // records per second
	Least, Most time.Duration
}

func newKills() study {
	return &kills{
		members: 3, partitions: 8, keys: 2000, session: 3 * time.Second, seed: 1,
		slow: killLoad{Kills: 10, Rate: 160, Least: time.Millisecond, Most: 50 * time.Millisecond},
		fast: killLoad{Kills: 5, Rate: 20_000},
	}
}

func (k *kills) flags(set *pflag.FlagSet) {
	set.IntVar(&k.slow.Kills, "kills", k.slow.Kills, "kills of each consumer, over all its runs")
	set.IntVar(&k.slow.Rate, "rate", k.slow.Rate, "records per second")
	set.DurationVar(&k.slow.Least, "least", k.slow.Least, "the shortest handler")
	set.DurationVar(&k.slow.Most, "most", k.slow.Most, "the longest handler")
	set.IntVar(&k.fast.Kills, "fast-kills", k.fast.Kills, "kills at the high rate, with handlers that do nothing; 0: none")
	set.IntVar(&k.fast.Rate, "fast-rate", k.fast.Rate, "the high rate, records per second")
	set.IntVar(&k.members, "members", k.members, "processes in the group")
	set.IntVar(&k.partitions, "partitions", k.partitions, "partitions")
	set.IntVar(&k.keys, "keys", k.keys, "keys")
	set.DurationVar(&k.session, "session", k.session, "session timeout")
	set.Uint64Var(&k.seed, "seed", k.seed, "of durations, keys, and who is killed when")
}

// killConsumers are those that are compared. stored is a hook that is called for each offset that is stored.
func killConsumers(stored func(ackpolicy.CommittedEvent)) []consumer {
	hook := func(c *ackpolicy.SubscriberConfig) { c.Hooks.Committed = stored }
	policy := router(ackpolicy.NackOnError.Middleware)
	return []consumer{
		{name: "stock router", run: stock(router())},
		{name: "ackpolicy router", run: ours(ackpolicy.OrderByPartition, policy, hook)},
		{name: "ackpolicy key", run: ours(ackpolicy.OrderByKey, policy, hook)},
	}
}

type killSpec struct {
	Job    job
	Index  int // of killConsumers
	Member byte
	Seed   uint64
	Load   killLoad
}

// killsChild is a member. It consumes until its standard input ends.
func killsChild(text []byte) (any, error) {
	var spec killSpec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, err
	}
	events := os.NewFile(3, "events")
	tell := func(kind byte, number int64) {
		if _, err := events.Write(soakEvent{Kind: kind, Member: spec.Member, Offset: number}.encode()); err != nil {
			panic(fmt.Errorf("the pipe: %w", err)) // the parent is gone
		}
	}
	m := &meter{job: spec.Job, done: make(chan struct{}), each: func(_ *meter, value []byte) {
		number := int64(decodeStamp(value).key)
		tell(evStart, number)
		if work := spec.work(number); work > 0 {
			time.Sleep(work)
		}
		tell(evEnd, number)
	}}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		m.finish()
	}()
	c := killConsumers(func(ackpolicy.CommittedEvent) { tell(evCommitted, 0) })[spec.Index]
	return nil, c.run(context.Background(), spec.Job, m)
}

// work is how long the handler of a record takes.
func (s killSpec) work(number int64) time.Duration {
	if s.Load.Most <= s.Load.Least {
		return s.Load.Least
	}
	return s.Load.Least + time.Duration(mix(s.Seed^mix(uint64(number)))%uint64(s.Load.Most-s.Load.Least))
}

// killRun is one run of one consumer.
type killRun struct {
	*kills
	spec    killSpec
	random  *rand.Rand
	members []*member

	mu       sync.Mutex
	judge    *killJudge
	produced int
	failed   error // of the producer
}

func (k *kills) run(b *bench, index int, load killLoad, seed uint64) (*killJudge, error) {
	c := killConsumers(nil)[index]
	topic, err := newTopic(b.brokers, "bench-kills", k.partitions)
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	r := &killRun{kills: k, judge: newKillJudge(), random: rand.New(rand.NewPCG(seed, 1)), spec: killSpec{
		Index: index, Seed: seed, Load: load,
		Job: job{Consumer: c.name, Brokers: b.brokers, Topic: topic, Group: group("kills", c.name), Concurrency: 16, Partitions: k.partitions, Session: k.session},
	}}
	var listening sync.WaitGroup
	listening.Go(func() {
		readEvents(read, func(e soakEvent) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.judge.add(e, time.Now())
		})
	})
	for i := range k.members {
		spec := r.spec
		spec.Member = byte(i)
		r.members = append(r.members, &member{experiment: "kills", spec: spec, number: spec.Member, events: write})
	}
	err = r.all()
	err = errors.Join(err, endAll(r.members), write.Close())
	listening.Wait()
	return r.judge, err
}

// all has records come and members killed, to the last record's end.
func (r *killRun) all() error {
	for _, p := range r.members {
		if err := p.start(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var producer sync.WaitGroup
	defer producer.Wait()
	defer cancel()
	producer.Go(func() { r.produce(ctx) })
	for range r.spec.Load.Kills {
		if err := r.kill(); err != nil {
			return err
		}
	}
	if err := r.allWork(); err != nil {
		return err
	}
	cancel()
	producer.Wait()
	return r.await("all records are handled", func() bool { return r.judge.finished == r.produced })
}

// kill kills a member at work, and starts it again a second later.
func (r *killRun) kill() error {
	if err := r.allWork(); err != nil {
		return err
	}
	time.Sleep(2*time.Second + time.Duration(r.random.IntN(4000))*time.Millisecond)
	p := r.members[r.random.IntN(len(r.members))]
	if err := r.await("a member works", func() bool { return r.judge.works(p.number, time.Now()) }); err != nil {
		return err
	}
	if err := p.kill(); err != nil {
		return err
	}
	time.Sleep(time.Second)
	return p.start()
}

func (r *killRun) allWork() error {
	return r.await("all members work", func() bool {
		return len(r.judge.began) == len(r.members)
	})
}

// await waits for a condition, which is looked at under the lock.
func (r *killRun) await(what string, holds func() bool) error {
	const limit = 2 * time.Minute
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		r.mu.Lock()
		ok, err := holds(), r.failed
		r.mu.Unlock()
		if ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: gave up after %v, waiting until %s", r.spec.Job.Consumer, limit, what)
}

// produce sends numbered records at the rate until ctx ends.
func (r *killRun) produce(ctx context.Context) {
	fail := func(err error) {
		if err != nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.failed = errors.Join(r.failed, err)
		}
	}
	cl, err := newProducer(r.spec.Job.Brokers)
	if err != nil {
		fail(err)
		return
	}
	defer cl.Close()
	random := rand.New(rand.NewPCG(r.spec.Seed, 2))
	sent := 0
	_ = pace(ctx, float64(r.spec.Load.Rate), math.MaxInt64, func(i int64, _ time.Time) {
		key := random.IntN(r.keys)
		cl.Produce(context.Background(), &kgo.Record{
			Topic: r.spec.Job.Topic, Partition: int32(key % r.partitions), Key: strconv.AppendInt([]byte("key-"), int64(key), 10),
			Value: stamp{key: uint32(i)}.encode(100),
		}, func(_ *kgo.Record, err error) { fail(err) })
		sent++
	})
	fail(cl.Flush(context.Background()))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.produced = sent
}

func (k *kills) measure(b *bench) (section, error) {
	s := section{name: "kills", about: fmt.Sprintf(
		"One of %d members at work gets a kill -9, and is started again a second later; %d partitions, %s keys, session timeout %s; stock and ackpolicy router handle one record at a time per partition, ackpolicy key 16. "+
			"Finished again: records whose handlers had finished before a kill, and that came again after it, with how long before the kill the first of them had finished. "+
			"In flight: records in handlers at a kill. Without a kill: finished records that came again in a rebalance, over the whole run",
		k.members, k.partitions, thousands(k.keys), plain(k.session))}
	s.lines = [][]string{{"consumer", "records/s", "handlers", "kills", "finished again, mean", "max", "oldest, ms", "in flight, mean", "max", "without a kill", "offsets stored/s"}}
	for _, load := range []killLoad{k.slow, k.fast} {
		if load.Kills == 0 {
			continue
		}
		means, err := k.compare(b, &s, load)
		if err != nil {
			return section{}, err
		}
		stock, partition, key := means[0], means[1], means[2]
		s.want(key <= stock, "at %s records/s by key %.1f finished records come again per kill, at most stock's %.1f wanted", thousands(load.Rate), key, stock)
		s.want(partition <= stock/2, "at %s records/s by partition %.1f, at most half of stock's %.1f wanted", thousands(load.Rate), partition, stock)
	}
	return s, nil
}

// compare adds a row per consumer and returns the means.
func (k *kills) compare(b *bench, s *section, load killLoad) (means []float64, err error) {
	consumers := killConsumers(nil)
	found := make([]killSum, len(consumers))
	runs := min(b.runs, load.Kills)
	for left, run := load.Kills, 0; run < runs; run++ {
		part := load
		part.Kills = left / (runs - run)
		left -= part.Kills
		for i, c := range consumers { // in turn: a drift of the machine hits all alike
			j, err := k.run(b, i, part, k.seed+uint64(run))
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(os.Stderr, "kills: %-18s %6d/s: %.0f\n", c.name, load.Rate, figures(j.kills, killCount.repeated))
			found[i].add(j)
		}
	}
	handlers := "nothing"
	if load.Most > 0 {
		handlers = plain(load.Least) + " to " + plain(load.Most)
	}
	for i, c := range consumers {
		f := &found[i]
		again, inFlight := figures(f.kills, killCount.repeated), figures(f.kills, func(c killCount) float64 { return float64(c.inFlight) })
		oldest := figures(f.kills, func(c killCount) float64 { return float64(c.oldest.Milliseconds()) })
		stored := "n/a"
		if f.stored > 0 {
			stored = fmt.Sprintf("%.0f", float64(f.stored)/f.took.Seconds())
		}
		s.lines = append(s.lines, []string{
			c.name, thousands(int(float64(f.finished) / f.took.Seconds())), handlers, fmt.Sprint(len(f.kills)),
			fmt.Sprintf("%.1f", mean(again)), fmt.Sprintf("%.0f", slices.Max(again)), fmt.Sprintf("%.0f", slices.Max(oldest)),
			fmt.Sprintf("%.1f", mean(inFlight)), fmt.Sprintf("%.0f", slices.Max(inFlight)), fmt.Sprint(f.otherwise), stored,
		})
		means = append(means, mean(again))
	}
	return means, nil
}

func (c killCount) repeated() float64 { return float64(c.again) }

// killSum is all runs of a consumer.
type killSum struct {
	kills                       []killCount
	finished, otherwise, stored int
	took                        time.Duration
}

func (s *killSum) add(j *killJudge) {
	s.kills = append(s.kills, j.kills...)
	s.finished += j.finished
	s.otherwise += j.otherwise
	s.stored += j.stored
	s.took += j.end.Sub(j.start)
}

func mean(values []float64) (m float64) {
	for _, v := range values {
		m += v / float64(len(values))
	}
	return m
}
