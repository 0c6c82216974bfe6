package faults_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/transact"
)

// A replica that catches up can forget an aborted transaction that comes after another one of the same producer id
// (docs/design.md): once it leads, Kafka shows the records to read_committed readers. Our senders do not depend on that.
func TestAbortedOutputStaysHidden(t *testing.T) {
	brokers := testkit.Shared.Addrs()
	if os.Getenv("ACKPOLICY_KAFKA_STATE") == "" || len(brokers) != 3 {
		t.Skip("needs a cluster of three brokers: scripts/kafka.sh run --brokers 3 -- go test -run TestAbortedOutputStaysHidden ./test/faults")
	}
	const rounds, perBatch = 10, 50 // a batch is larger than 4,096 bytes: each has an entry in the offset index
	topic, group := brokertest.Topic(t), brokertest.Group(t)
	testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error {
		return a.CreateTopic(topic, &sarama.TopicDetail{
			NumPartitions: -1, ReplicationFactor: -1, ReplicaAssignment: map[int32][]int32{0: {3, 1, 2}},
		}, false)
	})
	ofCluster(t, "stop-broker", "3")
	user := sarama.NewConfig()
	user.Version = sarama.V2_8_0_0
	fails := transact.New(brokers, group, transact.Config(user, "fails"+watermill.NewUUID(), 10*time.Second))
	works := transact.New(brokers, group, transact.Config(user, "works"+watermill.NewUUID(), 10*time.Second))
	output := func(n int, text string) (out []partition.Output) {
		for range n {
			out = append(out, &sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder(text)})
		}
		return out
	}
	for round := range rounds {
		part := commit.Part{Topic: topic, Offset: int64(round)}
		for range 2 {
			part.Output = output(perBatch, "aborted "+strings.Repeat("x", 100))
			err := fails.Send(nil, commit.Transaction{Member: "nobody", Generation: 7, Parts: []commit.Part{part}})
			if err == nil || errors.As(err, new(*commit.Unknown)) {
				t.Fatalf("a transaction of nobody: %v, want it to be refused", err)
			}
		}
		part.Output = output(1, fmt.Sprint("committed ", round))
		testkit.Check(t, works.Send(nil, commit.Transaction{Generation: -1, Parts: []commit.Part{part}}))
	}
	testkit.Check(t, errors.Join(fails.Close(), works.Close()))
	ofCluster(t, "start-broker", "3")
	testkit.Eventually(t, "broker 3 to lead", func() (leads bool) {
		testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error {
			_, _ = a.ElectLeaders(sarama.PreferredElection, map[string][]int32{topic: {0}}) // it may not be in sync yet
			topics, err := a.DescribeTopics([]string{topic})
			leads = err == nil && topics[0].Partitions[0].Leader == 3
			return err
		})
		return leads
	})
	want, got := []string{}, []string{}
	for round := range rounds {
		want = append(want, fmt.Sprint("committed ", round))
	}
	testkit.Check(t, brokertest.ReadByBatch(brokers, topic, 0, testkit.Patience, func(m *sarama.ConsumerMessage) error {
		got = append(got, string(m.Value))
		return nil
	}))
	if !slices.Equal(got, want) {
		t.Errorf("read %.60q, want %q", got, want)
	}
}
