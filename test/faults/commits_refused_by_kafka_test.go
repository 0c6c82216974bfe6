package faults_test

import (
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// TestCommitsRefusedForLong on Apache Kafka: a broker stops, and the log of offsets wants three replicas, so it stores
// nothing. No other test may run beside it. Needs scripts/kafka.sh run --brokers 3.
func TestCommitsRefusedByKafka(t *testing.T) {
	if os.Getenv("ACKPOLICY_KAFKA_STATE") == "" || len(testkit.Shared.Addrs()) != 3 {
		t.Skip("needs a cluster of three brokers: scripts/kafka.sh run --brokers 3 -- go test -run TestCommitsRefusedByKafka ./test/faults")
	}
	const bound, records = 20, 100
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	stuck := make(chan ackpolicy.BlockedEvent, 10)
	var lost atomic.Int32 // ends of the membership: after half a minute Kafka's coordinator gives it up
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 4))
	cfg.MaxUncommitted = bound
	cfg.Hooks.Blocked = func(e ackpolicy.BlockedEvent) { stuck <- e }
	cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) {
		if e.Err != nil {
			lost.Add(1)
		}
	}
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 1)

	replicas := "3"
	offsetsLog(t, sarama.IncrementalAlterConfigsEntry{Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &replicas})
	stopped := strconv.Itoa(int(coordinator(t, group)%3) + 1) // another one than the group's
	ofCluster(t, "stop-broker", stopped)
	heal := func() {
		offsetsLog(t, sarama.IncrementalAlterConfigsEntry{Operation: sarama.IncrementalAlterConfigsOperationDelete})
	}
	t.Cleanup(func() {
		heal()
		ofCluster(t, "start-broker", stopped)
	})
	healed := time.After(*refusal)
	testkit.Produce(t, topic, 0, testkit.Numbered(records-1)...)
	e := testkit.Await(t, "the hook", stuck)
	if e.Bound != "MaxUncommitted" || e.Offset != 1+bound || e.Err == nil {
		t.Errorf("the hook got %+v", e)
	}
	<-healed
	if n := distinct(s.All()); n != 1+bound {
		t.Errorf("%d records delivered while nothing is committed, want %d", n, 1+bound)
	}
	testkit.WantCommitted(t, group, topic, 0, 1)
	heal()
	testkit.WaitCommitted(t, group, topic, 0, records)
	s.Stop()
	all := s.All()
	if n, again := distinct(all), len(all)-records; n != records || again > int(lost.Load())*bound {
		t.Errorf("%d deliveries of %d records, %d wanted, and %d memberships lost", len(all), n, records, lost.Load())
	}
	t.Logf("refused for %v: the hook said %q; %d deliveries of %d records, %d memberships lost", *refusal, e.Err, len(all), records, lost.Load())
}

func distinct(deliveries []*ackpolicy.Delivery) int {
	offsets := map[int64]bool{}
	for _, d := range deliveries {
		offsets[d.Offset()] = true
	}
	return len(offsets)
}

// coordinator returns the broker id, 1 to 3, of the group's coordinator.
func coordinator(t *testing.T, group string) int32 {
	t.Helper()
	client, err := sarama.NewClient(testkit.Shared.Addrs(), nil)
	testkit.Check(t, err)
	defer client.Close()
	broker, err := client.Coordinator(group)
	testkit.Check(t, err)
	return broker.ID()
}

// ofCluster has the script that started the cluster do something with it.
func ofCluster(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("../../scripts/kafka.sh", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func offsetsLog(t *testing.T, entry sarama.IncrementalAlterConfigsEntry) {
	t.Helper()
	testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error {
		return a.IncrementalAlterConfig(sarama.TopicResource, "__consumer_offsets",
			map[string]sarama.IncrementalAlterConfigsEntry{"min.insync.replicas": entry}, false)
	})
}
