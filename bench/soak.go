package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spf13/pflag"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// soak is the parent: it produces, judges, and has members come and go.
type soak struct {
	spec    soakSpec
	members []*member
	kills   bool
	random  *rand.Rand

	mu       sync.Mutex
	judge    *judge
	series   map[processName]*memorySeries
	own      memorySeries
	ends     []int64 // produced so far
	letters  int64   // read so far
	restarts int     // that were no kills
	began    time.Time
	aborted  error
	end      func() // ends the producing
}

// processName distinguishes a member's processes: after a kill it has a new one.
type processName struct{ member, kills int }

func (n processName) String() string {
	return fmt.Sprintf("member %d, process %d", n.member, n.kills+1)
}

func soakCommand(flags *pflag.FlagSet) (run func() error) {
	length := flags.Duration("for", 30*time.Minute, "how long records are produced")
	members := flags.Int("members", 3, "processes in the group")
	rate := flags.Int("rate", 1000, "records per second, over both topics")
	keys := flags.Int("keys", 2000, "keys per topic")
	size := flags.Int("size", 200, "bytes of a value")
	every := flags.Duration("every", 15*time.Second, "mean time between restarts")
	s := &soak{series: map[processName]*memorySeries{}}
	flags.BoolVar(&s.kills, "kills", false, "a third of the restarts is a kill -9")
	flags.IntVar(&s.spec.Partitions, "partitions", 6, "partitions per topic")
	flags.Uint64Var(&s.spec.Seed, "seed", 1, "of outcomes, durations, restarts and keys")
	ordering := flags.String("ordering", "key", "key or none")
	flags.BoolVar(&s.spec.Cooperative, "cooperative", false, "cooperative-sticky rebalances instead of eager ones")
	flags.DurationVar(&s.spec.Session, "session", 10*time.Second, "session timeout: how long a killed member's partitions stand still")
	flags.DurationVar(&s.spec.Sample, "sample", 0, "between looks at the memory; 0: a sixtieth of --for, 1 s to 10 s")
	return func() error { return s.start(*length, *every, *members, *ordering, soakLoad{*rate, *keys, *size}) }
}

func (s *soak) start(length, every time.Duration, members int, ordering string, load soakLoad) (err error) {
	if s.spec.Sample <= 0 {
		s.spec.Sample = min(max(length/60, time.Second), 10*time.Second)
	}
	switch ordering {
	case "key":
		s.spec.Ordering = ackpolicy.OrderByKey
	case "none":
		s.spec.Ordering = ackpolicy.Unordered
	default:
		return fmt.Errorf("--ordering %q: wanted key or none", ordering)
	}
	if members < 2 || members > 100 {
		return fmt.Errorf("--members %d: wanted 2 to 100", members)
	}
	if s.spec.Brokers, err = brokersFromEnv(); err != nil {
		return err
	}
	for i, name := range []string{"bench-soak-policy", "bench-soak-manual"} {
		if s.spec.Topics[i], err = newTopic(s.spec.Brokers, name, s.spec.Partitions); err != nil {
			return err
		}
		if err = createTopic(s.spec.Brokers, s.spec.Topics[i]+".dlq", s.spec.Partitions); err != nil {
			return err
		}
	}
	s.spec.Group = s.spec.Topics[0]
	s.random = rand.New(rand.NewPCG(s.spec.Seed, 1))
	s.judge = newJudge(2*s.spec.Partitions, s.spec.Ordering == ackpolicy.OrderByKey)
	s.ends = make([]int64, 2*s.spec.Partitions)
	fmt.Printf("soak: seed %d, %v, %d members, %d records/s, kills %v, cooperative %v, order by %v\n",
		s.spec.Seed, length, members, load.rate, s.kills, s.spec.Cooperative, s.spec.Ordering)
	return s.run(length, members, every, load)
}

func (s *soak) run(length time.Duration, members int, every time.Duration, load soakLoad) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	producing, stopProducing := context.WithTimeout(ctx, length)
	defer stopProducing()
	s.began, s.end = time.Now(), stopProducing
	var judging, helpers sync.WaitGroup
	judging.Go(func() { s.listen(read) })
	for i := range members {
		spec := s.spec
		spec.Member = byte(i)
		p := &member{experiment: "soak", spec: spec, number: spec.Member, events: write}
		s.members = append(s.members, p)
		s.abort(p.start())
	}
	helpers.Go(func() { s.abort(s.readLetters(ctx)) })
	helpers.Go(func() { s.report(ctx) })
	var producer sync.WaitGroup
	producer.Go(func() { s.abort(s.produce(producing, load)) })
	s.disturb(producing, every)
	producer.Wait()
	s.await("all records are settled and committed", 2*time.Minute, func() bool { return s.judge.handled(s.ends) && s.judge.stored(s.ends) })
	s.abort(endAll(s.members))
	stored, err := s.lettersStored()
	s.abort(err)
	s.await("all dead letters are read", 30*time.Second, func() bool { return s.letters >= stored })
	cancel()
	helpers.Wait()
	_ = write.Close()
	judging.Wait()
	return s.verdict()
}

// abort ends the soak early, where there is an error.
func (s *soak) abort(err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted == nil {
		s.aborted = err
	}
	s.end()
}

// listen feeds the judge.
func (s *soak) listen(pipe io.Reader) {
	readEvents(pipe, func(e soakEvent) {
		s.mu.Lock()
		if e.Kind == evSample {
			name := s.process(int(e.Member))
			if s.series[name] == nil {
				s.series[name] = &memorySeries{}
			}
			s.series[name].add(float64(e.Offset), float64(e.A), float64(e.B))
		} else {
			s.judge.add(e, time.Now())
		}
		s.mu.Unlock()
	})
}

// process names a member's present process.
func (s *soak) process(member int) processName { return processName{member, s.judge.kills[member]} }

// await waits for a condition under the lock; the judge says what is missing if it does not come.
func (s *soak) await(what string, limit time.Duration, holds func() bool) {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		s.mu.Lock()
		ok := holds() || s.aborted != nil
		s.mu.Unlock()
		if ok {
			return
		}
	}
	fmt.Printf("soak: gave up after %v, waiting until %s\n", limit, what)
}

// report prints one line per minute, and looks at the parent's own memory and at records that stand still.
func (s *soak) report(ctx context.Context) {
	sample, line := time.NewTicker(s.spec.Sample), time.NewTicker(time.Minute)
	defer sample.Stop()
	defer line.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sample.C:
			heap := liveHeap()
			resident, _ := memoryOf("self")
			s.mu.Lock()
			s.own.add(float64(heap), float64(resident), 0)
			s.judge.stuck(time.Now(), 2*time.Minute)
			s.mu.Unlock()
		case <-line.C:
			s.mu.Lock()
			fmt.Printf("%4.0f min: %s\n", time.Since(s.began).Minutes(), s.line())
			s.mu.Unlock()
		}
	}
}

func (s *soak) line() string {
	var produced int64
	for _, end := range s.ends {
		produced += end
	}
	j := s.judge
	kills, heap, goroutines := 0, 0.0, 0.0
	for member := range s.members {
		kills += j.kills[member]
		if series := s.series[s.process(member)]; series != nil {
			heap = max(heap, series.heap[len(series.heap)-1])
			goroutines = max(goroutines, series.goroutines[len(series.goroutines)-1])
		}
	}
	return fmt.Sprintf("%d produced, %d deliveries, %d settled, %d rejected; %d restarts, %d kills, %d assignments; "+
		"repeated after kills %d, for want of marks %d, marks kept %d; heap at most %.1f MiB, %.0f goroutines between sessions; judge holds %d records; %d violations",
		produced, j.deliveries, j.settled, j.rejected, s.restarts, kills, j.assignments,
		j.repeatedKill, j.repeatedUnmarked, j.kept, heap/(1<<20), goroutines, j.remembered(), j.violations)
}

func (s *soak) verdict() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := s.judge.finish(s.ends)
	fmt.Printf("\nsoak, at the end: %s\n\n", s.line())
	var v verdict
	v.want(s.aborted == nil, "everything ran to its end: %v", s.aborted)
	v.want(lost == 0, "%d records lost", lost)
	v.want(s.judge.violations == 0, "%d violations", s.judge.violations)
	for _, example := range s.judge.examples {
		fmt.Println("        ", example)
	}
	v.want(slices.Equal(s.stored(), s.ends), "Kafka stores the end of every partition")
	names := slices.SortedFunc(maps.Keys(s.series), func(a, b processName) int {
		return cmp.Or(a.member-b.member, a.kills-b.kills)
	})
	for _, name := range names {
		s.level(&v, name.String(), *s.series[name])
	}
	s.level(&v, "the soak itself", s.own)
	return v.err()
}

func (s *soak) level(v *verdict, name string, series memorySeries) {
	if series.short() {
		fmt.Printf("note:    %s: its %d samples are too few to judge its memory\n", name, len(series.heap))
		return
	}
	v.want(!series.rises(), "%s, %s", name, series.text())
}
