package lifecycle_test

import (
	"flag"
	"fmt"
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
	bound := promised(t, spec)
	producer := testkit.StartProducer(t, spec.Topic, killPartitions, killRate, killKeys)
	c := &crashes{t: t, spec: spec, ledger: &testkit.Ledger{}}
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
	c.child.Stop()
	if code := c.child.ExitCode(); code != 0 {
		t.Errorf("the consumer ended with exit code %d", code)
	}

	found := c.ledger.Judge(ends, func(id testkit.RecordID) string { return fmt.Sprint(id.Offset % spec.lanes()) })
	if spec.Policy == ackpolicy.AckFirst {
		wantAtMostOnce(t, found, spec)
	} else {
		wantAtLeastOnce(t, found, bound)
	}
	if len(found.Faults) > 0 {
		t.Errorf("faults:\n%s", strings.Join(found.Faults, "\n"))
	}
	t.Logf("kills=%d %s, %d handlers at work then: %d records, started again %d, at most %d a kill and partition; lost %d (%d of them begun), at most %d a kill and partition",
		*kills, spec.name(), c.running, found.Records, found.Replayed, found.MaxReplay, found.Lost, found.Unfinished, found.MaxMissing)
}

func wantAtLeastOnce(t *testing.T, found testkit.Findings, bound int) {
	t.Helper()
	if found.Lost > 0 {
		t.Errorf("%d of %d records lost", found.Lost, found.Records)
	}
	if found.MaxReplay > bound {
		t.Errorf("%d records of a partition started again after a kill; Guarantees says at most %d", found.MaxReplay, bound)
	}
}

// wantAtMostOnce allows each kill to lose what was confirmed and not finished: what ran, or was about to.
func wantAtMostOnce(t *testing.T, found testkit.Findings, spec killSpec) {
	t.Helper()
	if found.Twice > 0 || found.Replayed > 0 {
		t.Errorf("%d of %d records started twice", max(found.Twice, found.Replayed), found.Records)
	}
	inFlight := spec.maxInFlight()
	if found.MaxMissing > inFlight {
		t.Errorf("a kill lost %d records of a partition; at most %d were in flight", found.MaxMissing, inFlight)
	}
	if bound := *kills * killPartitions * inFlight; found.Lost > bound {
		t.Errorf("%d kills lost %d records; at most %d were in flight", *kills, found.Lost, bound)
	}
}

// promised is the number in Guarantees.
func promised(t *testing.T, spec killSpec) int {
	t.Helper()
	guarantees := testkit.NewSubscriber(t, spec.config(), testkit.NewLog(t)).Guarantees()
	number := regexp.MustCompile(`at most (\d+) records per partition replayed after a crash`).FindStringSubmatch(guarantees)
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
	ledger  *testkit.Ledger
	child   *testkit.Child
	running int // handlers that the kills met
}

func (c *crashes) start() {
	c.t.Helper()
	c.child = testkit.StartChild(c.t, killChildEnv, c.spec, c.ledger)
}

// kill starts the process, and kills it amid its work, once it has begun some more records. Every third time it is
// shutting down when it is killed.
func (c *crashes) kill(i int) {
	c.t.Helper()
	open := c.ledger.Running() // when those before were killed
	want := c.ledger.Count(testkit.Began) + []int{20, 150, 3, 400, 60}[i%5]
	c.start()
	testkit.Eventually(c.t, fmt.Sprintf("handlers at work before kill %d", i), func() bool {
		return c.ledger.Count(testkit.Began) >= want && c.ledger.Running() > open
	})
	if i%3 == 2 {
		c.child.Stop()
	}
	c.child.Kill()
	if code := c.child.ExitCode(); code != -1 {
		c.t.Errorf("kill %d came too late: exit code %d", i, code)
	}
	c.running += c.ledger.Running() - open
	c.ledger.Add(testkit.Entry{Kind: testkit.Killed})
}
