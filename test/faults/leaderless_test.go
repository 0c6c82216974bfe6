package faults_test

import (
	"os"
	"testing"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Partitions whose only replica is on a broker that is down do not keep a member that starts meanwhile from the others.
// They are named, and come once the broker is back. (Without a group, Subscribe fails.)
func TestLeaderlessPartition(t *testing.T) {
	if os.Getenv("ACKPOLICY_KAFKA_STATE") == "" || len(testkit.Shared.Addrs()) != 3 {
		t.Skip("needs a cluster of three brokers: scripts/kafka.sh run --brokers 3 -- go test -run TestLeaderlessPartition ./test/faults")
	}
	const partitions, records = 6, 5
	topic := brokertest.Topic(t)
	assignment := map[int32][]int32{}
	for p := range int32(partitions) {
		assignment[p] = []int32{1 + p%3}
	}
	testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error {
		return a.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: -1, ReplicationFactor: -1, ReplicaAssignment: assignment}, false)
	})
	t.Cleanup(func() { // or clients of later tests that stop a broker wait for its leaders
		testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error { return a.DeleteTopic(topic) })
	})
	for p := range int32(partitions) {
		testkit.Produce(t, topic, p, testkit.Numbered(records)...)
	}
	ofCluster(t, "stop-broker", "3")
	cfg := testkit.Config(brokertest.Group(t))
	began := time.Now()
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, partitions*records*2/3)
	t.Logf("the partitions with a leader came after %v", time.Since(began))
	testkit.Eventually(t, "a line that names the others", func() bool {
		return len(testkit.Containing(s.Log.At("error"), "Cannot fetch", topic, "kafka_partitions=2: 2, 5")) > 0
	})
	for _, d := range s.All() {
		if d.Partition()%3 == 2 {
			t.Errorf("%s of partition %d", testkit.Name(d), d.Partition())
		}
	}
	ofCluster(t, "start-broker", "3")
	s.Wait(t, partitions*records)
	testkit.Eventually(t, "a line that it is over", func() bool { return len(testkit.Containing(s.Log.At("info"), "Kafka works again", topic)) > 0 })
	s.Stop()
	if n := len(s.All()); n != partitions*records {
		t.Errorf("%d deliveries of %d records", n, partitions*records)
	}
}
