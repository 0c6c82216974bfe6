package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// soak is the parent: it produces, judges, and has members come and go.
type soak struct {
	spec    soakSpec
	members []*soakProcess
	kills   bool
	random  *rand.Rand
	write   *os.File // the members' end of the pipe

	mu      sync.Mutex
	judge   *judge
	series  map[string]*memorySeries // by process
	own     memorySeries
	ends    []int64 // produced so far
	began   time.Time
	aborted error
}

type memorySeries struct{ heap, resident, goroutines []float64 }

func (s *memorySeries) add(heap, resident, goroutines float64) {
	s.heap = append(s.heap, heap)
	s.resident = append(s.resident, resident)
	s.goroutines = append(s.goroutines, goroutines)
}

func runSoak(args []string) error {
	flags := flag.NewFlagSet("soak", flag.ExitOnError)
	length := flags.Duration("for", 30*time.Minute, "how long records are produced")
	members := flags.Int("members", 3, "processes in the group")
	rate := flags.Int("rate", 1000, "records a second, over both topics")
	keys := flags.Int("keys", 2000, "keys a topic")
	size := flags.Int("size", 200, "bytes of a value")
	every := flags.Duration("every", 15*time.Second, "mean time between restarts")
	s := &soak{series: map[string]*memorySeries{}}
	flags.BoolVar(&s.kills, "kills", false, "a third of the restarts is a kill -9")
	flags.IntVar(&s.spec.Partitions, "partitions", 6, "partitions a topic")
	flags.Uint64Var(&s.spec.Seed, "seed", 1, "of outcomes, durations, restarts and keys")
	ordering := flags.String("ordering", "key", "key or none")
	flags.BoolVar(&s.spec.Cooperative, "cooperative", false, "cooperative-sticky rebalances instead of eager ones")
	flags.DurationVar(&s.spec.Session, "session", 10*time.Second, "session timeout: how long a killed member's partitions stand still")
	flags.DurationVar(&s.spec.Sample, "sample", 10*time.Second, "between looks at the memory")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch *ordering {
	case "key":
		s.spec.Ordering = ackpolicy.OrderByKey
	case "none":
		s.spec.Ordering = ackpolicy.Unordered
	default:
		return fmt.Errorf("-ordering %q: wanted key or none", *ordering)
	}
	if *members < 2 || *members > 100 {
		return fmt.Errorf("-members %d: wanted 2 to 100", *members)
	}
	var err error
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
		s.spec.Seed, *length, *members, *rate, s.kills, s.spec.Cooperative, s.spec.Ordering)
	return s.run(*length, *members, *every, soakLoad{*rate, *keys, *size})
}

func (s *soak) run(length time.Duration, members int, every time.Duration, load soakLoad) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	s.write, s.began = write, time.Now()
	var judging, helpers sync.WaitGroup
	judging.Go(func() { s.listen(read) })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := range members {
		p := &soakProcess{soak: s, member: byte(i)}
		s.members = append(s.members, p)
		if err := p.start(); err != nil {
			s.endMembers()
			return err
		}
	}
	helpers.Go(func() { s.abort(s.readLetters(ctx)) })
	helpers.Go(func() { s.report(ctx) })
	producing, stopProducing := context.WithTimeout(ctx, length)
	defer stopProducing()
	var producer sync.WaitGroup
	producer.Go(func() { s.abort(s.produce(producing, load)) })
	s.disturb(producing, every)
	producer.Wait()
	s.await("all records are settled", 2*time.Minute, func() bool { return s.judge.handled(s.ends) })
	s.endMembers()
	s.await("all dead letters are read", 30*time.Second, func() bool { return len(s.judge.owed) == 0 })
	cancel()
	helpers.Wait()
	_ = write.Close()
	judging.Wait()
	return s.verdict()
}

func (s *soak) abort(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.aborted == nil {
		s.aborted = err
	}
}

// listen feeds the judge.
func (s *soak) listen(pipe io.Reader) {
	in := bufio.NewReaderSize(pipe, 64<<10)
	b := make([]byte, soakEventSize)
	for {
		if _, err := io.ReadFull(in, b); err != nil {
			return
		}
		e := decodeSoakEvent(b)
		s.mu.Lock()
		if e.Kind == evSample {
			p := s.members[e.Member]
			name := fmt.Sprintf("member %d, process %d", e.Member, p.incarnation)
			if s.series[name] == nil {
				s.series[name] = &memorySeries{}
			}
			s.series[name].add(float64(e.Offset), float64(e.A), float64(e.B))
		} else {
			s.judge.add(e, time.Now())
		}
		s.mu.Unlock()
	}
}

type soakLoad struct{ rate, keys, size int }

// produce sends keyed records at a rate. A key has its partition.
func (s *soak) produce(ctx context.Context, load soakLoad) error {
	cl, err := newProducer(s.spec.Brokers)
	if err != nil {
		return err
	}
	defer cl.Close()
	random := rand.New(rand.NewPCG(s.spec.Seed, 2))
	var once sync.Once
	for sent := 0; ctx.Err() == nil; sent++ {
		if wait := time.Until(s.began.Add(time.Duration(sent) * time.Second / time.Duration(load.rate))); wait > 0 {
			time.Sleep(wait)
		}
		key := random.IntN(load.keys)
		topic, partition := random.IntN(2), key%s.spec.Partitions
		cl.Produce(context.Background(), &kgo.Record{
			Topic: s.spec.Topics[topic], Partition: int32(partition), Key: strconv.AppendInt([]byte("key-"), int64(key), 10),
			Value: stamp{key: uint32(key)}.encode(load.size),
		}, func(r *kgo.Record, err error) {
			if err != nil {
				once.Do(func() { s.abort(fmt.Errorf("produce: %w", err)) })
				return
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			end := &s.ends[topic*s.spec.Partitions+partition]
			*end = max(*end, r.Offset+1)
		})
	}
	return cl.Flush(context.Background())
}

// disturb restarts members, one at a time, or two at once, until ctx ends.
func (s *soak) disturb(ctx context.Context, every time.Duration) {
	for {
		if !pause(ctx, time.Duration(s.random.ExpFloat64()*float64(every))) {
			return
		}
		n := 1 + s.random.IntN(2)*s.random.IntN(2)
		var group sync.WaitGroup
		for _, i := range s.random.Perm(len(s.members))[:min(n, len(s.members)-1)] {
			p, kill := s.members[i], s.kills && s.random.IntN(3) == 0
			away := time.Duration(s.random.IntN(3)*s.random.IntN(2000)) * time.Millisecond
			group.Go(func() {
				err := p.stop
				if kill {
					err = p.kill
				}
				if err := err(); err != nil {
					s.abort(err)
				}
				pause(ctx, away)
				s.abort(p.start())
			})
		}
		group.Wait()
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

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
	fmt.Printf("soak: waited %v in vain until %s\n", limit, what)
}

func (s *soak) endMembers() {
	var group sync.WaitGroup
	for _, p := range s.members {
		group.Go(func() { s.abort(p.end()) })
	}
	group.Wait()
}

// readLetters tells the judge of each dead letter.
func (s *soak) readLetters(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.spec.Brokers...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeTopics(s.spec.Topics[0]+".dlq", s.spec.Topics[1]+".dlq"))
	if err != nil {
		return err
	}
	defer cl.Close()
	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx)
		s.mu.Lock()
		fetches.EachRecord(func(r *kgo.Record) {
			id := soakRecord{partition: -1}
			topic := 0
			for _, h := range r.Headers {
				switch n, _ := strconv.ParseInt(string(h.Value), 10, 64); h.Key {
				case ackpolicy.HeaderTopic:
					topic = slices.Index(s.spec.Topics[:], string(h.Value))
				case ackpolicy.HeaderPartition:
					id.partition = int32(n)
				case ackpolicy.HeaderOffset:
					id.offset = n
				}
			}
			id.partition += int32(topic * s.spec.Partitions)
			s.judge.letter(id)
		})
		s.mu.Unlock()
	}
	return nil
}

// report prints a line a minute, and looks at the parent's own memory and at records that stand still.
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
	heap, goroutines := 0.0, 0.0
	for _, series := range s.series {
		heap, goroutines = max(heap, series.heap[len(series.heap)-1]), max(goroutines, series.goroutines[len(series.goroutines)-1])
	}
	return fmt.Sprintf("%d produced, %d deliveries, %d settled, %d rejected, %d releases, %d kills, repeated after kills %d, behind left records %d; "+
		"heap at most %.1f MiB, %.0f goroutines; judge holds %d records; %d violations",
		produced, j.deliveries, j.settled, j.rejected, j.releases, j.kills, j.repeatedKill, j.repeatedLeft, heap/(1<<20), goroutines, j.remembered(), j.violations)
}

func (s *soak) verdict() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := s.judge.finish(s.ends)
	fmt.Printf("\nsoak, at the end: %s\n\n", s.line())
	for _, name := range slices.Sorted(maps.Keys(s.series)) {
		s.trends(name, *s.series[name])
	}
	s.trends("the soak itself", s.own)
	fmt.Println()
	var v verdict
	v.want(s.aborted == nil, "everything ran to its end: %v", s.aborted)
	v.want(lost == 0, "%d records lost", lost)
	v.want(s.judge.violations == 0, "%d violations", s.judge.violations)
	for _, example := range s.judge.examples {
		fmt.Println("        ", example)
	}
	for name, series := range s.series {
		v.want(!series.rises(), "%s: memory and goroutines are level", name)
	}
	v.want(slices.Equal(s.stored(), s.ends), "Kafka stores the end of every partition")
	return v.err()
}

// Slack of the trends.
const heapSlack, residentSlack, goroutineSlack = 4 << 20, 16 << 20, 30

func (s memorySeries) trends() (heap, resident, goroutines trend) {
	return newTrend(s.heap, heapSlack), newTrend(s.resident, residentSlack), newTrend(s.goroutines, goroutineSlack)
}

func (s memorySeries) rises() bool {
	heap, resident, goroutines := s.trends()
	return heap.rises() || resident.rises() || goroutines.rises()
}

func (s *soak) trends(name string, series memorySeries) {
	heap, resident, goroutines := series.trends()
	fmt.Printf("%s, second half of %d samples: heap %s; resident %s; goroutines %s\n", name, len(series.heap),
		heap.text(1<<20, "MiB"), resident.text(1<<20, "MiB"), goroutines.text(1, ""))
}

// stored answers the group's offsets.
func (s *soak) stored() []int64 {
	admin, err := sarama.NewClusterAdmin(s.spec.Brokers, sarama.NewConfig())
	if err != nil {
		return nil
	}
	defer admin.Close()
	all, err := admin.ListConsumerGroupOffsets(s.spec.Group, nil)
	if err != nil {
		return nil
	}
	offsets := make([]int64, len(s.ends))
	for i := range offsets {
		if b := all.GetBlock(s.spec.Topics[i/s.spec.Partitions], int32(i%s.spec.Partitions)); b != nil {
			offsets[i] = max(0, b.Offset)
		}
	}
	return offsets
}

// soakProcess is a member's process.
type soakProcess struct {
	soak        *soak
	member      byte
	incarnation int // guarded by soak.mu
	cmd         *exec.Cmd
	words       io.WriteCloser
	answers     *bufio.Reader
}

// start begins a session, in a new process if the last one was killed.
func (p *soakProcess) start() error {
	if p.cmd == nil {
		spec := p.soak.spec
		spec.Member = p.member
		text, err := json.Marshal(spec)
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), childEnv+"=soak", specEnv+"="+string(text))
		cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{p.soak.write}
		if p.words, err = cmd.StdinPipe(); err != nil {
			return err
		}
		answers, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		p.answers = bufio.NewReader(answers)
		if err := cmd.Start(); err != nil {
			return err
		}
		p.cmd = cmd
		p.soak.mu.Lock()
		p.incarnation++
		p.soak.mu.Unlock()
	}
	_, err := fmt.Fprintln(p.words, soakStart)
	return err
}

// stop ends the session gracefully; the process goes on.
func (p *soakProcess) stop() error {
	if _, err := fmt.Fprintln(p.words, soakStop); err != nil {
		return fmt.Errorf("member %d: %w", p.member, err)
	}
	if _, err := p.answers.ReadString('\n'); err != nil {
		return fmt.Errorf("member %d ended: %w", p.member, err)
	}
	return nil
}

func (p *soakProcess) kill() error {
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = p.cmd.Wait() // "signal: killed"
	p.cmd = nil
	_, err := p.soak.write.Write(soakEvent{Kind: evKilled, Member: p.member}.encode())
	return err
}

// end has the process end gracefully, whatever its session.
func (p *soakProcess) end() error {
	if p.cmd == nil {
		return nil
	}
	_ = p.words.Close()
	ended := make(chan struct{})
	late := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, p.answers)
	}()
	<-ended
	if err := p.cmd.Wait(); err != nil {
		return errors.Join(fmt.Errorf("member %d", p.member), err)
	}
	return nil
}
