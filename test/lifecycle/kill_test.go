package lifecycle_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var kills = flag.Int("kills", 3, "times that TestKill kills each consumer")

const (
	killPartitions = 4
	killRate       = 160
	killKeys       = 32
)

// TestKill consumes in another process, which gets SIGKILL in mid-flight, again and again, while records keep coming.
// Under every policy but AckFirst no record is lost, and after a kill no more of them come again than Guarantees
// says. Under AckFirst with ConfirmFirst none comes twice, and what is lost was confirmed and with, or about to reach,
// its handler.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes for some 20 s")
	}
	t.Parallel()
	specs := []killSpec{{Policy: ackpolicy.NackOnError, Instance: "static"}}
	for _, policy := range testkit.Policies {
		specs = append(specs, killSpec{Policy: policy}, killSpec{Policy: policy, ByKey: true})
	}
	for _, spec := range specs {
		t.Run(spec.name(), func(t *testing.T) {
			t.Parallel()
			testKill(t, spec)
		})
	}
}

func testKill(t *testing.T, spec killSpec) {
	spec.Group, spec.Topic = brokertest.Group(t), testkit.NewTopic(t, killPartitions)
	spec.Ledger = filepath.Join(t.TempDir(), "ledger")
	bound := promised(t, spec)
	producer := testkit.StartProducer(t, spec.Topic, killPartitions, killRate, killKeys)
	c := &crashes{t: t, spec: spec, ledger: &tail{path: spec.Ledger}}
	defer c.closeLog()
	for i := range *kills {
		c.kill(i)
	}
	c.start()
	ends := producer.Finish(t)
	// With ConfirmFirst each record is a commit: beside all the other tests that takes its time.
	if !testkit.PollFor(4*testkit.Patience, func() bool {
		stored, err := brokertest.CommittedAll(testkit.Shared.Addrs(), spec.Group, spec.Topic)
		for p, end := range ends {
			if err != nil || stored[int32(p)] != end {
				return false
			}
		}
		return true
	}) {
		stored, err := brokertest.CommittedAll(testkit.Shared.Addrs(), spec.Group, spec.Topic)
		t.Errorf("stored offsets at the end: got %v, %v, want %v", stored, err, ends)
	}
	c.stop()

	record, err := c.ledger.read()
	testkit.Check(t, err)
	found := judgeCrashes(record.lines, ends, spec)
	if spec.Policy == ackpolicy.AckFirst {
		found.wantAtMostOnce(t, spec)
	} else {
		found.wantAtLeastOnce(t, bound)
	}
	if len(found.Faults) > 0 {
		t.Errorf("faults:\n%s", strings.Join(found.Faults, "\n"))
	}
	t.Logf("kills=%d %s, %d handlers at work then: %s", *kills, spec.name(), c.running, found)
}

// promised is the number in Guarantees.
func promised(t *testing.T, spec killSpec) int {
	t.Helper()
	guarantees := testkit.NewSubscriber(t, spec.config(), testkit.NewLog(t)).Guarantees()
	number := regexp.MustCompile(`at most (\d+) records replayed a partition after a crash`).FindStringSubmatch(guarantees)
	if number == nil {
		t.Fatalf("Guarantees: %s", guarantees)
	}
	bound, err := strconv.Atoi(number[1])
	testkit.Check(t, err)
	return bound
}

// crashes starts the consumer's process and ends it.
type crashes struct {
	t       *testing.T
	spec    killSpec
	ledger  *tail
	log     *os.File
	child   *exec.Cmd
	stdin   io.Closer
	running int // handlers that the kills met
}

func (c *crashes) start() {
	c.t.Helper()
	if c.log == nil {
		var err error
		c.log, err = os.Create(c.spec.Ledger + ".log")
		testkit.Check(c.t, err)
	}
	spec, err := json.Marshal(c.spec)
	testkit.Check(c.t, err)
	executable, err := os.Executable()
	testkit.Check(c.t, err)
	child := exec.Command(executable)
	child.Env = append(os.Environ(), killChildEnv+"="+string(spec), "KAFKA_BROKERS="+strings.Join(testkit.Shared.Addrs(), ","))
	child.Stdout, child.Stderr = c.log, c.log
	c.stdin, err = child.StdinPipe()
	testkit.Check(c.t, err)
	testkit.Check(c.t, child.Start())
	c.child = child
	c.t.Cleanup(func() { // if the test failed meanwhile
		if child.ProcessState == nil {
			_ = child.Process.Kill()
			_ = child.Wait()
		}
	})
}

// kill starts the process, and kills it amid its work, once it has begun some more records. Every third time it is
// shutting down when it is killed.
func (c *crashes) kill(i int) {
	c.t.Helper()
	c.start()
	before, err := c.ledger.read()
	testkit.Check(c.t, err)
	want := before.begun + []int{20, 150, 3, 400, 60}[i%5]
	testkit.Eventually(c.t, fmt.Sprintf("handlers at work before kill %d", i), func() bool {
		now, err := c.ledger.read()
		return err == nil && now.begun >= want && now.open() > before.open()
	})
	if i%3 == 2 {
		testkit.Check(c.t, c.stdin.Close())
	}
	testkit.Check(c.t, c.child.Process.Kill())
	_ = c.child.Wait() // "signal: killed"
	if code := c.child.ProcessState.ExitCode(); code != -1 {
		c.t.Errorf("kill %d came too late: exit code %d", i, code)
	}
	after, err := c.ledger.read()
	testkit.Check(c.t, err)
	c.running += after.open() - before.open()
	testkit.Check(c.t, appendLine(c.spec.Ledger, "kill"))
}

// stop has the process end as it does at a deploy.
func (c *crashes) stop() {
	c.t.Helper()
	testkit.Check(c.t, c.stdin.Close())
	if err := c.child.Wait(); err != nil {
		c.t.Errorf("the consumer: %v", err)
	}
}

func (c *crashes) closeLog() {
	if c.log == nil {
		return
	}
	_ = c.log.Close()
	if c.t.Failed() {
		text, _ := os.ReadFile(c.log.Name())
		c.t.Logf("the end of the consumer's log:\n%s", text[max(0, len(text)-20_000):])
	}
}
