package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kgo"
)

// lifecycle measures a subscription's beginning, its end, and its cost while nothing comes.
type lifecycle struct {
	consumers               string
	records                 int
	concurrency, partitions int
	work, busy, idle, warm  time.Duration
}

func newLifecycle() study {
	return &lifecycle{
		consumers: "stock router,ackpolicy router,ackpolicy key,ppc key,spring batch",
		records:   100_000, concurrency: 64, partitions: 4, work: 10 * time.Millisecond,
		busy: 2 * time.Second, idle: 30 * time.Second, warm: 4 * time.Second,
	}
}

func (l *lifecycle) flags(set *pflag.FlagSet) {
	set.StringVar(&l.consumers, "only", l.consumers, "consumers to run, by comma")
	set.IntVar(&l.records, "records", l.records, "records of the topic")
	set.IntVar(&l.concurrency, "concurrency", l.concurrency, "handlers at once, per partition")
	set.IntVar(&l.partitions, "partitions", l.partitions, "partitions")
	set.DurationVar(&l.work, "work", l.work, "the handler's waiting")
	set.DurationVar(&l.busy, "busy", l.busy, "how long a consumer works before it is closed")
	set.DurationVar(&l.idle, "idle", l.idle, "how long an idle consumer is measured")
	set.DurationVar(&l.warm, "warm", l.warm, "unmeasured run before, in a JVM")
}

// life is what was measured of a consumer.
type life struct {
	first, drain []float64 // ms, of each run
	again        []float64 // records that were handled before it was closed, and came again
	cpu          float64   // ms per minute
	goroutines   float64
	memory       float64 // MiB
}

func (l *lifecycle) measure(b *bench) (section, error) {
	if l.records < 1 || l.concurrency < 1 || l.partitions < 1 {
		return section{}, errors.New("--records, --concurrency and --partitions must be 1 or more")
	}
	names, err := able(strings.Split(l.consumers, ","))
	if err != nil {
		return section{}, err
	}
	busy, err := l.topic(b.brokers, l.records)
	if err != nil {
		return section{}, err
	}
	lives := map[string]*life{}
	for _, name := range names {
		lives[name] = &life{}
	}
	for run := range b.runs {
		for _, name := range names { // in turn: a drift of the machine hits all alike
			if err := l.session(b.brokers, name, busy, lives[name]); err != nil {
				return section{}, err
			}
			v := lives[name]
			fmt.Fprintf(os.Stderr, "lifecycle, run %d: %-16s first %.0f ms, drain %.0f ms, %.0f again\n", run+1, name, v.first[run], v.drain[run], v.again[run])
		}
	}
	quiet, err := l.topic(b.brokers, 100*l.partitions)
	if err != nil {
		return section{}, err
	}
	if err := l.idleAll(b.brokers, names, quiet, lives); err != nil {
		return section{}, err
	}
	s := section{name: "lifecycle", about: fmt.Sprintf(
		"First: from Subscribe to the first handler's start, in a new group, on a topic with records. "+
			"Drain: how long a graceful close takes %s later, with handlers that wait %s, %d at once per partition where the consumer can; medians of the runs. "+
			"Again: records that were handled by then, and came again after a restart. "+
			"Idle: what a subscription without new records takes, over %s, all of them at the same time: processor time per minute, goroutines (threads in a JVM), resident memory. %d partitions",
		plain(l.busy), plain(l.work), l.concurrency, plain(l.idle), l.partitions)}
	s.lines = [][]string{{"consumer", "first, ms", "min–max", "drain, ms", "min–max", "again", "idle: CPU ms/min", "goroutines", "resident MiB"}}
	for _, name := range names {
		v := lives[name]
		s.lines = append(s.lines, []string{name,
			fmt.Sprintf("%.0f", middle(v.first)), lowHigh(v.first, "%.0f"), fmt.Sprintf("%.0f", middle(v.drain)), lowHigh(v.drain, "%.0f"),
			fmt.Sprintf("%.0f", middle(v.again)), fmt.Sprintf("%.0f", v.cpu), fmt.Sprintf("%.0f", v.goroutines), fmt.Sprintf("%.0f", v.memory)})
	}
	return s, nil
}

// able are those of the consumers that can run on this machine.
func able(names []string) (found []string, err error) {
	for _, name := range names {
		ok, err := there(name)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, name)
		}
	}
	return found, nil
}

// topic is filled with numbered records.
func (l *lifecycle) topic(brokers []string, records int) (string, error) {
	topic, err := newTopic(brokers, "bench-lifecycle", l.partitions)
	if err != nil {
		return "", err
	}
	return topic, fill(brokers, records, func(i int) *kgo.Record {
		return &kgo.Record{Topic: topic, Partition: int32(i % l.partitions), Key: fmt.Appendf(nil, "key-%d", i%10_000), Value: stamp{key: uint32(i)}.encode(100)}
	})
}

func (l *lifecycle) job(brokers []string, name, topic string) job {
	return job{Consumer: name, Brokers: brokers, Topic: topic, Group: group("lifecycle", name), Records: int64(l.records),
		Work: l.work, Concurrency: l.concurrency, Partitions: l.partitions, Warm: l.warm}
}

// session runs a consumer twice in a group, and closes it each time.
func (l *lifecycle) session(brokers []string, name, topic string, v *life) error {
	j := l.job(brokers, name, topic)
	first, drain, before, err := l.run(j)
	if err != nil {
		return err
	}
	if common(before, before) == l.records {
		return fmt.Errorf("%s has handled all records before it was closed: raise --records", name)
	}
	j.Warm = 0
	_, _, after, err := l.run(j)
	if err != nil {
		return err
	}
	v.first, v.drain = append(v.first, first), append(v.drain, drain)
	v.again = append(v.again, float64(common(before, after)))
	return nil
}

func (l *lifecycle) run(j job) (first, drain float64, handled []byte, err error) {
	s, err := serve(j, nil)
	if err != nil {
		return 0, 0, nil, err
	}
	defer s.kill()
	if first, err = s.started(); err != nil {
		return 0, 0, nil, err
	}
	time.Sleep(l.busy)
	drain, handled, err = s.stop()
	return first, drain, handled, err
}

// idleAll measures all consumers at once while nothing comes.
func (l *lifecycle) idleAll(brokers []string, names []string, topic string, lives map[string]*life) error {
	var all sync.WaitGroup
	errs := make([]error, len(names))
	for i, name := range names {
		all.Go(func() { errs[i] = l.idleOne(l.job(brokers, name, topic), lives[name]) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (l *lifecycle) idleOne(j job, v *life) error {
	s, err := serve(j, nil)
	if err != nil {
		return err
	}
	defer s.kill()
	if _, err := s.started(); err != nil {
		return err
	}
	// All have handled the few records and made the last commit by then. A JVM's compiler may have more to do.
	const settle = 10 * time.Second
	time.Sleep(settle)
	before, err := s.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	time.Sleep(l.idle)
	after, err := s.cpu()
	if err != nil {
		return err
	}
	v.cpu = float64((after - before).Milliseconds()) / time.Since(began).Minutes()
	v.memory = s.resident()
	if v.goroutines, err = s.goroutines(); err != nil {
		return err
	}
	_, _, err = s.stop()
	return err
}
