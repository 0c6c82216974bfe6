package chaos_test

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/chaos"
)

var (
	seeds    = flag.String("chaos-seed", "1", "seeds of TestChaos, comma separated")
	length   = flag.Duration("chaos-for", 10*time.Second, "how long each run of TestChaos is disturbed")
	protocol = flag.String("chaos-protocol", "", "eager or cooperative; both if empty")
	stock    = flag.Bool("chaos-stock", false, "run watermill-kafka's own Subscriber beside it, for its figures")
	output   = flag.String("chaos-out", "", "a file to append the summaries to")
	kept     = flag.String("chaos-judge", "", "the directory of a run that was kept, to judge again")
	keep     = flag.String("chaos-keep", "", "a directory to leave the ledgers in")
)

func TestMain(m *testing.M) {
	if membership, ok := os.LookupEnv(chaos.MemberEnv); ok {
		os.Exit(chaos.Main(membership))
	}
	// sarama's metrics start one goroutine for the process and never end it.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes for some 20 s")
	}
	t.Parallel()
	run(t, *length, false)
}

// TestRestarts has members come and go as they should: then nothing is delivered twice.
func TestRestarts(t *testing.T) {
	if testing.Short() {
		t.Skip("restarts processes for some 20 s")
	}
	t.Parallel()
	run(t, *length, true)
}

// TestJudgeAgain judges a run whose ledgers were kept: for work on the judge, and for another look.
func TestJudgeAgain(t *testing.T) {
	if *kept == "" {
		t.Skip("needs -chaos-judge")
	}
	record, err := chaos.Load(*kept)
	if err != nil {
		t.Fatal(err)
	}
	report(t, record)
}

func run(t *testing.T, length time.Duration, graceful bool) {
	eachSeed(t, func(seed uint64, protocol string) {
		spec := chaos.NewSpec(seed, protocol)
		spec.Calm = graceful
		runs := []chaos.Spec{spec}
		if *stock {
			spec.Stock = true
			runs = append(runs, spec)
		}
		for _, spec := range runs {
			name := fmt.Sprintf("seed %d %s", seed, protocol)
			if spec.Stock {
				name += " stock"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				broker := brokertest.New(t)
				one(t, spec, broker, slowCommits(broker), length)
			})
		}
	})
}

func eachSeed(t *testing.T, do func(seed uint64, protocol string)) {
	protocols := []string{chaos.Eager, chaos.Cooperative}
	if *protocol != "" {
		protocols = []string{*protocol}
	}
	for _, text := range strings.Split(*seeds, ",") {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal("-chaos-seed:", err)
		}
		for _, protocol := range protocols {
			do(seed, protocol)
		}
	}
}

func one(t *testing.T, spec chaos.Spec, broker *brokertest.Broker, cluster *chaos.Cluster, length time.Duration) {
	schedule := chaos.Schedule(spec, length)
	spec.Brokers, spec.Topic, spec.Group = broker.Addrs(), brokertest.Topic(t), brokertest.Group(t)
	spec.Fake = !broker.Real()
	spec.Dir = t.TempDir()
	if *keep != "" {
		spec.Dir = fmt.Sprintf("%s/%s-%d-%s", *keep, t.Name(), spec.Seed, spec.Protocol)
		if err := os.MkdirAll(spec.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	record, err := chaos.Run(spec, schedule, cluster)
	if err != nil {
		t.Fatal(err)
	}
	report(t, record)
	if t.Failed() {
		t.Logf("repeat it with -chaos-seed %d -chaos-protocol %s -chaos-for %v; the schedule was:\n%s",
			spec.Seed, spec.Protocol, length, chaos.Describe(schedule))
	}
}

func report(t *testing.T, record *chaos.Record) {
	t.Helper()
	verdict := chaos.Judge(record)
	summary := verdict.Summary(record.Spec)
	t.Log(summary)
	if *output != "" {
		appendLine(t, *output, summary)
	}
	for _, v := range verdict.Violations {
		if v.Rule == chaos.RuleSession && *length < time.Minute {
			t.Log(v) // a machine that is busy with something else costs sessions, too
			continue
		}
		t.Error(v)
	}
	again := verdict.Duplicates + verdict.Unmarked + verdict.Left
	if record.Calm && !record.Stock && again > 0 && verdict.Counts[chaos.RuleSession] == 0 {
		t.Errorf("%d records were delivered again, though members only restarted", again)
	}
}

// slowCommits holds commits back, in kfake. On Kafka they are as slow as they are.
func slowCommits(broker *brokertest.Broker) *chaos.Cluster {
	var slow atomic.Bool
	if fake := broker.Kfake(); fake != nil {
		fake.ControlKey(int16(kmsg.OffsetCommit), func(kmsg.Request) (kmsg.Response, error, bool) {
			fake.KeepControl()
			if slow.Load() {
				fake.SleepControl(func() { time.Sleep(50 * time.Millisecond) })
			}
			return nil, nil, false
		})
	}
	return &chaos.Cluster{SlowCommits: slow.Store}
}

func appendLine(t *testing.T, path, line string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := fmt.Fprintln(file, line); err != nil {
		t.Error(err)
	}
}
