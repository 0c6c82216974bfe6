package faults_test

import (
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// understood reports whether a rolling restart may cause the error line.
func understood(line string) bool {
	messages := []string{
		"Cannot fetch from Kafka, retrying", "No connection to Kafka, retrying", // sarama tries again
		"Commits keep failing, retrying",
		"Kafka consumer stopped, reconnecting", "Cannot reconnect to Kafka", // the whole membership again
	}
	causes := []error{
		// A broker that stops closes its connections, and takes none before it is back.
		io.EOF, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EPIPE, net.ErrClosed, sarama.ErrNotConnected,
		sarama.ErrOutOfBrokers, sarama.ErrRequestTimedOut, sarama.ErrBrokerNotAvailable,
		// Leaders and the coordinator move, and clients find out by asking the old one.
		sarama.ErrNotLeaderForPartition, sarama.ErrLeaderNotAvailable, sarama.ErrReplicaNotAvailable,
		sarama.ErrFencedLeaderEpoch, sarama.ErrUnknownLeaderEpoch, sarama.ErrOffsetNotAvailable,
		sarama.ErrNotCoordinatorForConsumer, sarama.ErrConsumerCoordinatorNotAvailable, sarama.ErrOffsetsLoadInProgress,
		// Fewer replicas than min.insync.replicas are up for a moment.
		sarama.ErrNotEnoughReplicas, sarama.ErrNotEnoughReplicasAfterAppend,
		// The group starts again at its new coordinator.
		sarama.ErrRebalanceInProgress, sarama.ErrUnknownMemberId, sarama.ErrIllegalGeneration,
	}
	return slices.ContainsFunc(messages, func(m string) bool { return strings.Contains(line, "error: "+m) }) &&
		slices.ContainsFunc(causes, func(err error) bool { return strings.Contains(line, err.Error()) })
}

// A rolling restart of the cluster under load: nothing is lost, no partition stands still for more than half a minute, and
// every error line is one that is understood. Needs scripts/kafka.sh run --brokers 3.
func TestRollingRestart(t *testing.T) {
	brokers := testkit.Shared.Addrs()
	if os.Getenv("ACKPOLICY_KAFKA_STATE") == "" || len(brokers) != 3 {
		t.Skip("needs a cluster of three brokers: scripts/kafka.sh run --brokers 3 -- go test -run TestRollingRestart ./test/faults")
	}
	const partitions, rate, keys, members = 6, 300, 50, 2
	group, topic := brokertest.Group(t), testkit.NewTopic(t, partitions)
	producer := testkit.StartProducer(t, topic, partitions, rate, keys)
	began := &testkit.Ledger{}
	var last [partitions]atomic.Int64 // when a record of it was begun
	var stall atomic.Int64            // the longest
	for p := range last {
		last[p].Store(time.Now().UnixNano())
	}
	var services []*testkit.Service
	for member := range members {
		cfg := testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 16), testkit.BalanceStrategy(sarama.NewBalanceStrategyCooperativeSticky()))
		cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Session.Timeout = 10 * time.Second
		services = append(services, testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
			now := time.Now().UnixNano()
			if since := now - last[d.Partition()].Swap(now); since > stall.Load() {
				stall.Store(since)
			}
			ended := began.Handle(member, d.Partition(), d.Offset())
			<-time.After(time.Millisecond)
			ended()
			return nil
		}, ackpolicy.NackOnError.Middleware))
	}
	for n := 1; n <= len(brokers); n++ {
		before := began.Count(testkit.Began, testkit.Ended)
		testkit.Eventually(t, "records to flow", func() bool { return began.Count(testkit.Began, testkit.Ended) > before+2*rate })
		ofCluster(t, "restart-broker", strconv.Itoa(n))
	}
	before := began.Count(testkit.Began, testkit.Ended)
	testkit.Eventually(t, "records to flow", func() bool { return began.Count(testkit.Began, testkit.Ended) > before+2*rate })
	ends := producer.Finish(t)
	for p, end := range ends {
		testkit.WaitCommitted(t, group, topic, int32(p), end)
	}
	for _, s := range services {
		s.Stop()
	}
	found := began.Judge(ends, func(id testkit.RecordID) string { return testkit.KeyOf(id.Partition, id.Offset, keys) })
	if found.Lost > 0 {
		t.Errorf("%d of %d records lost:\n%s", found.Lost, found.Records, strings.Join(found.Faults, "\n"))
	}
	longest := time.Duration(stall.Load()).Round(time.Millisecond)
	if longest > 30*time.Second {
		t.Errorf("a partition stood still for %v", longest)
	}
	lines := 0
	for _, s := range services {
		for _, line := range s.Log.At("error") {
			if lines++; !understood(line) {
				t.Errorf("not understood: %s", line)
			}
		}
	}
	t.Logf("%d records, lost %d, started twice %d; the longest stall %v; %d error lines", found.Records, found.Lost, found.Twice, longest, lines)
}
