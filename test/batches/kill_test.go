package batches_test

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var kills = flag.Int("kills", 3, "times that TestKill kills each consumer")

// killChildEnv makes the test binary the consumer that TestKill kills; its value is the killSpec.
const killChildEnv = "ACKPOLICY_BATCHES_KILL_CHILD"

const (
	killPartitions = 4
	killRate       = 300
	killKeys       = 32
	killBound      = 1000 // MaxUncommitted
)

// killSpec is what the consumer runs.
type killSpec struct {
	Ordering     ackpolicy.Ordering
	Group, Topic string
}

// Consume implements testkit.Consumer.
func (s killSpec) Consume(stop io.Reader) error {
	cfg := testkit.Config(s.Group, testkit.Ordering(s.Ordering, 0))
	cfg.MaxUncommitted = killBound
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Session.Timeout = 2 * time.Second // the dead member's partitions are free after it
	cfg.Hooks.Assigned = testkit.WriteAssigned
	router, sub, err := testkit.ChildRouter(cfg, ackpolicy.NackOnError.Middleware)
	if err != nil {
		return err
	}
	w := &worker{write: testkit.Write, fails: failsOnce}
	router.AddConsumerHandler("handler", s.Topic, sub.Batches(ackpolicy.BatchConfig{Size: 100, Wait: 20 * time.Millisecond, Concurrency: 2}),
		(&calls{}).recorded(w.handle))
	return testkit.RunUntil(router, stop)
}

// TestKill consumes in another process, which gets SIGKILL in mid-flight, again and again, while records keep coming. No
// record is lost, none overtakes another of its lane, and after a kill no more of them come again than Guarantees says.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes for some 20 s")
	}
	t.Parallel()
	for _, ordering := range []ackpolicy.Ordering{ackpolicy.OrderByPartition, ackpolicy.OrderByKey} {
		t.Run(fmt.Sprint(ordering), func(t *testing.T) {
			t.Parallel()
			kill(t, killSpec{ordering, brokertest.Group(t), testkit.NewTopic(t, killPartitions)})
		})
	}
}

func kill(t *testing.T, spec killSpec) {
	producer := testkit.StartProducer(t, spec.Topic, killPartitions, killRate, killKeys)
	ledger := &testkit.Ledger{}
	for i := range *kills {
		want := ledger.Count(testkit.Began) + []int{50, 400, 7, 900}[i%4]
		child := testkit.StartChild(t, killChildEnv, spec, ledger)
		testkit.Eventually(t, fmt.Sprint("records before kill ", i), func() bool { return ledger.Count(testkit.Began) >= want })
		child.Kill()
		ledger.Add(testkit.Entry{Kind: testkit.Killed})
	}
	child := testkit.StartChild(t, killChildEnv, spec, ledger)
	ends := producer.Finish(t)
	testkit.Eventually(t, "everything is committed", func() bool {
		stored, err := brokertest.CommittedAll(testkit.Shared.Addrs(), spec.Group, spec.Topic)
		for p, end := range ends {
			if err != nil || stored[int32(p)] != end {
				return false
			}
		}
		return true
	})
	child.Stop()
	if code := child.ExitCode(); code != 0 {
		t.Errorf("the consumer ended with exit code %d", code)
	}
	found := ledger.Judge(ends, laneOf(spec.Ordering, killKeys))
	if found.Lost > 0 || found.MaxReplay > killBound || len(found.Faults) > 0 {
		t.Errorf("%+v\n%s", found, strings.Join(found.Faults, "\n"))
	}
	t.Logf("kills=%d: %d records, %d begun again, at most %d per kill and partition; %d lost",
		*kills, found.Records, found.Replayed, found.MaxReplay, found.Lost)
}
