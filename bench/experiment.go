package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/spf13/pflag"
)

// experiment is a bench with flags and its own verdict: bench NAME [flags].
type experiment struct {
	name, about string
	// prepare defines flags, and returns what runs once they are parsed.
	prepare func(*pflag.FlagSet) (run func() error)
	// child is the part that runs in a separate process, if there is one. What it
	// returns is handed back as JSON.
	child func(spec []byte) (any, error)
	// study is what is published with the cases' tables. It is nil, or prepare returns what runs it.
	study func() study
}

func experiments() []experiment {
	return []experiment{
		{name: "soak", about: "random outcomes, restarts and kills for as long as is wanted: fates, order, memory", prepare: soakCommand, child: soakMemberMain},
		apart(studied("kills", "kill -9 of members at work: how many records whose handlers had finished come again", newKills, killsChild)),
		{name: "parked", about: "200,000 records of 10 KB parked at once: memory, reading them again, order", prepare: parkedCommand, child: parkedChild},
		apart(studied("lifecycle", "the first record after Subscribe, a graceful close, and an idle subscription", newLifecycle, nil)),
		apart(studied("rebalance", "how long deliveries pause when a member joins and leaves", newRebalance, nil)),
		apart(studied("exactly-once", "output in transactions beside at least once: rate, and time until it is visible", newExactlyOnce, nil)),
		studied("latency", "from when a record was due to be sent to its handler's start, at a fixed rate", newLatency, timedChild),
		studied("skew", "a hot key and cold ones: a queue per key beside lanes by hash", newSkew, nil),
		studied("siblings", "fast partitions beside a slow one, and alone", newSiblings, siblingsChild),
		studied("scale", "processor time per record over numbers of keys and of partitions", newScale, nil),
		studied("acksync", "AckSync on an idle partition beside a bare OffsetCommit", newAckSync, nil),
		studied("waiting", "AckSync of 64 handlers at once, behind a record that is nacked and on an idle partition", newWaiting, nil),
		studied("cpu", "where the processor time of a record goes that passes a Router, by profile", newCPUShares, nil),
		studied("commits", "commits once per second beside none", newCommits, commitsChild),
	}
}

const childEnv, specEnv = "ACKPOLICY_BENCH_EXPERIMENT", "ACKPOLICY_BENCH_SPEC"

// experimentChild runs the child of an experiment, and prints its result.
func experimentChild(name string) error {
	all := experiments()
	i := slices.IndexFunc(all, func(e experiment) bool { return e.name == name })
	if i < 0 {
		return fmt.Errorf("no experiment %q", name)
	}
	result, err := all[i].child([]byte(os.Getenv(specEnv)))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// brokersFromEnv returns the brokers of scripts/kafka.sh run.
func brokersFromEnv() ([]string, error) {
	brokers := os.Getenv("KAFKA_BROKERS")
	if brokers == "" {
		return nil, errors.New("KAFKA_BROKERS is not set: run it through scripts/kafka.sh, as README.md says")
	}
	return strings.Split(brokers, ","), nil
}

const readyLine = "ready"

// ready reports to the parent, from the child, that the measurement may begin.
func ready() { fmt.Println(readyLine) }

// inChild runs an experiment's child and returns its result. onReady, which may be
// nil, is called in a separate goroutine once the child says that it is ready.
func inChild[R any](name string, spec any, timeout time.Duration, onReady func(ctx context.Context) error) (result R, err error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return result, err
	}
	self, err := os.Executable()
	if err != nil {
		return result, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), childEnv+"="+name, specEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return result, err
	}
	if err := cmd.Start(); err != nil {
		return result, err
	}
	began := make(chan error, 1)
	waitFor := 0
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	var last []byte
	for lines.Scan() {
		if lines.Text() == readyLine {
			if onReady != nil {
				waitFor++
				go func() { began <- onReady(ctx) }()
			}
			continue
		}
		last = slices.Clone(lines.Bytes())
	}
	err = errors.Join(lines.Err(), cmd.Wait())
	if ctx.Err() != nil {
		err = errors.Join(fmt.Errorf("not done after %v", timeout), err)
	}
	if err != nil {
		cancel()
	}
	for range waitFor {
		err = errors.Join(err, <-began)
	}
	if err != nil {
		return result, err
	}
	return result, json.Unmarshal(last, &result)
}

// verdict gathers what is to be kept, and what was not.
type verdict struct{ broken []string }

// want notes whether a bound holds, and prints it.
func (v *verdict) want(holds bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if holds {
		fmt.Println("ok:     ", text)
		return
	}
	fmt.Println("BROKEN: ", text)
	v.broken = append(v.broken, text)
}

func (v *verdict) err() error {
	if len(v.broken) == 0 {
		return nil
	}
	return fmt.Errorf("%d of the bounds broken", len(v.broken))
}

// middle is the median.
func middle(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// spread is the median with the lowest and the highest beside it.
func spread(values []float64, format string) string {
	if len(values) == 0 {
		return ""
	}
	return fmt.Sprintf(format+" ("+lowHigh(values, format)+")", middle(values))
}

// lowHigh are the lowest and the highest.
func lowHigh(values []float64, format string) string {
	return fmt.Sprintf(format+"–"+format, slices.Min(values), slices.Max(values))
}

// errorLogger logs errors only.
func errorLogger() watermill.LoggerAdapter {
	return &watermill.StdLoggerAdapter{ErrorLogger: log.New(os.Stderr, "", log.LstdFlags|log.Lmicroseconds)}
}

// errorLoggerWithout is errorLogger without the lines that begin with one of these.
func errorLoggerWithout(beginnings ...string) watermill.LoggerAdapter {
	return quietLogger{errorLogger(), beginnings}
}

type quietLogger struct {
	watermill.LoggerAdapter
	without []string
}

func (l quietLogger) Error(msg string, err error, fields watermill.LogFields) {
	if !slices.ContainsFunc(l.without, func(beginning string) bool { return strings.HasPrefix(msg, beginning) }) {
		l.LoggerAdapter.Error(msg, err, fields)
	}
}

func (l quietLogger) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return quietLogger{l.LoggerAdapter.With(fields), l.without}
}

// memoryOf returns a process's resident memory now and at its peak, in bytes.
func memoryOf(pid string) (now, peak int64) {
	text, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, 0 // not on this system
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			now = kib << 10
		}
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			peak = kib << 10
		}
	}
	return now, peak
}

// liveHeap is the heap in use after a collection.
func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
