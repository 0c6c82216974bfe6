package ackpolicy_test

import (
	"os"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Partitions whose only replica is on a broker that is down do not keep a member that starts meanwhile from the others.
// They are named, and come once the broker is back. (Without a group, Subscribe fails.)
func TestLeaderlessPartition(t *testing.T) {
	if os.Getenv("ACKPOLICY_KAFKA_STATE") == "" || len(shared.Addrs()) != 3 {
		t.Skip("needs a cluster of three brokers: scripts/kafka.sh run --brokers 3 -- go test -run TestLeaderlessPartition .")
	}
	const partitions, records = 6, 5
	topic := brokertest.Topic(t)
	assignment := map[int32][]int32{}
	for p := range int32(partitions) {
		assignment[p] = []int32{1 + p%3}
	}
	admin(t, shared, func(a sarama.ClusterAdmin) error {
		return a.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: -1, ReplicationFactor: -1, ReplicaAssignment: assignment}, false)
	})
	t.Cleanup(func() { // or clients of later tests that stop a broker wait for its leaders
		admin(t, shared, func(a sarama.ClusterAdmin) error { return a.DeleteTopic(topic) })
	})
	for p := range int32(partitions) {
		produce(t, topic, p, numbered(records)...)
	}
	ofCluster(t, "stop-broker", "3")
	cfg := config(brokertest.Group(t))
	began := time.Now()
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, partitions*records*2/3)
	t.Logf("the partitions with a leader came after %v", time.Since(began))
	eventually(t, "a line that names the others", func() bool {
		return len(with(s.log.at("error"), "Cannot fetch", topic, "kafka_partitions=2: 2, 5")) > 0
	})
	for _, d := range s.journal.all() {
		if d.Partition()%3 == 2 {
			t.Errorf("%s of partition %d", name(d), d.Partition())
		}
	}
	ofCluster(t, "start-broker", "3")
	s.journal.wait(t, partitions*records)
	eventually(t, "a line that it is over", func() bool { return len(with(s.log.at("info"), "Kafka works again", topic)) > 0 })
	s.stop()
	if n := len(s.journal.all()); n != partitions*records {
		t.Errorf("%d deliveries of %d records", n, partitions*records)
	}
}
