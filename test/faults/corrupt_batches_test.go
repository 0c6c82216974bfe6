package faults_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A batch that cannot be decoded stops its partition only, and the log names it. sarama cannot read past it: the whole
// response of the broker fails.
func TestCorruptBatchStopsItsPartitionOnly(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"group", "no group"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const partitions, bad, records = 4, 0, 3
			broker := brokertest.NewFake(t)
			topic, at := testkit.FakeTopicOf(t, broker, partitions)
			write := func() {
				for p := range int32(partitions) {
					_, err := brokertest.Produce(broker.Addrs(), topic, p, testkit.Numbered(records)...)
					testkit.Check(t, err)
				}
			}
			write()
			testkit.ProduceUndecodable(t, broker, topic, bad)
			cfg := testkit.Config(brokertest.Group(t), at)
			if kind == "no group" {
				cfg.Kafka.ConsumerGroup = ""
			}
			reported := make(chan ackpolicy.FetchStalledEvent, 10)
			cfg.Hooks.FetchStalled = func(e ackpolicy.FetchStalledEvent) { reported <- e }
			s := testkit.NewConsumer(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			seam.LookEvery(s.Sub, 5*time.Second)
			s.Start(t)
			s.Wait(t, (partitions-1)*records)
			if e := testkit.Await(t, "the hook", reported); e.Partition != bad || e.Offset != records {
				t.Errorf("the hook got %+v", e)
			}
			write()
			s.Wait(t, 2*(partitions-1)*records)
			if n := len(testkit.Containing(s.Log.At("error"), "cannot be decoded", topic, "kafka_partition=0", "kafka_partition_offset=3")); n != 1 {
				t.Errorf("%d lines name the batch", n)
			}
			// Gone, with what lies before it.
			testkit.Check(t, brokertest.DeleteRecords(broker.Addrs(), topic, bad, records+1))
			s.Wait(t, 2*(partitions-1)*records+records)
			s.Stop()
		})
	}
}

// The same with a real broker, in whose log one bit was flipped.
func TestFlippedBitStopsItsPartitionOnly(t *testing.T) {
	state := os.Getenv("ACKPOLICY_KAFKA_STATE")
	if state == "" || len(testkit.Shared.Addrs()) != 3 {
		t.Skip("needs a cluster of three brokers: scripts/kafka.sh run --brokers 3 -- go test -run TestFlippedBit ./test/faults")
	}
	const partitions, bad, records = 4, 1, 5
	topic := brokertest.Topic(t)
	assignment := map[int32][]int32{}
	for p := range int32(partitions) {
		assignment[p] = []int32{3}
	}
	testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error {
		return a.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: -1, ReplicationFactor: -1, ReplicaAssignment: assignment}, false)
	})
	for p := range int32(partitions) {
		for range records {
			testkit.Produce(t, topic, p, testkit.Numbered(1)...) // a separate batch
		}
	}
	ofCluster(t, "stop-broker", "3")
	file := filepath.Join(state, "3", "data", fmt.Sprint(topic, "-", bad), "00000000000000000000.log")
	segment, err := os.ReadFile(file)
	testkit.Check(t, err)
	segment[len(segment)-1] ^= 1 // in the last batch
	testkit.Check(t, os.WriteFile(file, segment, 0o600))
	ofCluster(t, "start-broker", "3")
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t)), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, (partitions-1)*records)
	testkit.Eventually(t, "a line that names the batch", func() bool {
		return len(testkit.Containing(s.Log.At("error"), "cannot be decoded", topic, "kafka_partition=1", "kafka_partition_offset=4")) > 0
	})
	testkit.Produce(t, topic, 0, testkit.Numbered(1)...)
	s.Wait(t, (partitions-1)*records+1)
	s.Stop()
}
