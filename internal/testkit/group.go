package testkit

import (
	"testing"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// AwaitGroupOfTwo waits for a group of two members that has its assignment.
func AwaitGroupOfTwo(t testing.TB, broker *brokertest.Broker, group string) {
	t.Helper()
	Eventually(t, "a group of two", func() bool {
		n, state, err := brokertest.Members(broker.Addrs(), group)
		return err == nil && n == 2 && state == "Stable"
	})
}

// WantCommitted asserts the offset that the broker stores.
func WantCommitted(t testing.TB, group, topic string, partition int32, want int64) {
	t.Helper()
	got, err := brokertest.Committed(Shared.Addrs(), group, topic, partition)
	Check(t, err)
	if got != want {
		t.Errorf("stored offset of partition %d: got %d, want %d", partition, got, want)
	}
}

// WaitCommitted waits until the broker stores the offset.
func WaitCommitted(t testing.TB, group, topic string, partition int32, want int64) {
	t.Helper()
	Check(t, brokertest.WaitCommitted(Shared.Addrs(), group, topic, partition, want, Patience))
	WantCommitted(t, group, topic, partition, want)
}

// StoredPosition returns what the group stores for partition 0.
func StoredPosition(t testing.TB, group, topic string) (position sarama.OffsetFetchResponseBlock) {
	t.Helper()
	Admin(t, Shared, func(a sarama.ClusterAdmin) error {
		response, err := a.ListConsumerGroupOffsets(group, map[string][]int32{topic: {0}})
		if err == nil {
			position = *response.GetBlock(topic, 0)
		}
		return err
	})
	return position
}

// StorePosition stores it for a group without members.
func StorePosition(t testing.TB, group, topic string, position sarama.OffsetFetchResponseBlock) {
	t.Helper()
	cfg := sarama.NewConfig()
	client, err := sarama.NewClient(Shared.Addrs(), cfg)
	Check(t, err)
	defer client.Close()
	Eventually(t, "the offset is stored", func() bool {
		coordinator, err := client.Coordinator(group)
		if err != nil {
			return false
		}
		request := sarama.NewOffsetCommitRequest(cfg, group)
		request.ConsumerGroupGeneration = -1
		request.AddBlockWithLeaderEpoch(topic, 0, position.Offset, -1, 0, position.Metadata)
		response, err := coordinator.CommitOffset(request)
		return err == nil && response.Errors[topic][0] == sarama.ErrNoError
	})
}

// Admin connects an admin client for what is to be done with it.
func Admin(t testing.TB, broker *brokertest.Broker, do func(sarama.ClusterAdmin) error) {
	t.Helper()
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	a, err := sarama.NewClusterAdmin(broker.Addrs(), cfg)
	Check(t, err)
	Check(t, do(a))
	Check(t, a.Close())
}
