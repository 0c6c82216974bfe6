package brokertest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"
)

const (
	retryTimeout = 20 * time.Second
	pollInterval = 20 * time.Millisecond
)

// Each helper connects, does its work and disconnects, in about 1 ms with kfake and 6 ms with Kafka: nothing is cached
// that a broker restart would make stale, and no goroutine outlives the call for a leak check to find.

func config(addrs []string) *sarama.Config {
	cfg := sarama.NewConfig()
	cfg.ClientID = "brokertest"
	cfg.Version = sarama.V2_8_0_0
	cfg.Metadata.AllowAutoTopicCreation = false
	cfg.Metadata.RefreshFrequency = 0
	cfg.Metadata.Retry.Max = 50 // a broker creates the offsets topic when the first group asks for its coordinator
	cfg.Metadata.Retry.Backoff = 100 * time.Millisecond
	cfg.Admin.Retry.Max = 50
	if s, ok := secured.Load(strings.Join(addrs, ",")); ok {
		s.(*Secure).Use(cfg, sarama.SASLTypePlaintext, SecureAdmin, SecurePassword)
	}
	return cfg
}

func withClient(addrs []string, do func(sarama.Client) error) error {
	return retry(func() error {
		client, err := sarama.NewClient(addrs, config(addrs))
		if err != nil {
			return err
		}
		return errors.Join(do(client), client.Close())
	})
}

func withAdmin(addrs []string, do func(sarama.ClusterAdmin) error) error {
	return retry(func() error {
		admin, err := sarama.NewClusterAdmin(addrs, config(addrs))
		if err != nil {
			return err
		}
		return errors.Join(do(admin), admin.Close())
	})
}

// retry continues while a leader or a coordinator is only on its way: sarama gives up after one retry for the former, and
// at once while the latter loads the offsets.
func retry(do func() error) error {
	for deadline := time.Now().Add(retryTimeout); ; time.Sleep(pollInterval) {
		err := do()
		passing := slices.ContainsFunc([]error{
			sarama.ErrLeaderNotAvailable, sarama.ErrNotLeaderForPartition, sarama.ErrUnknownTopicOrPartition,
			sarama.ErrConsumerCoordinatorNotAvailable, sarama.ErrNotCoordinatorForConsumer, sarama.ErrOffsetsLoadInProgress,
		}, func(target error) bool { return errors.Is(err, target) })
		if !passing || time.Now().After(deadline) {
			return err
		}
	}
}

// CreateTopic creates a topic, with settings like "cleanup.policy=compact", and waits until the leaders of its partitions respond.
func CreateTopic(addrs []string, topic string, partitions int32, settings ...string) error {
	detail := sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: -1, ConfigEntries: map[string]*string{}}
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		detail.ConfigEntries[name] = &value
	}
	err := withAdmin(addrs, func(admin sarama.ClusterAdmin) error { return admin.CreateTopic(topic, &detail, false) })
	if err != nil {
		return fmt.Errorf("creating topic %s: %w", topic, err)
	}
	// A leader that metadata names already may not know yet that it is one: ask each.
	for partition := range partitions {
		if _, err := EndOffset(addrs, topic, partition); err != nil {
			return err
		}
	}
	return nil
}

// Record is what [Produce] writes. A nil Key or Value is a null one.
type Record struct {
	Key, Value []byte
	Headers    []sarama.RecordHeader
	Timestamp  time.Time // now, if zero
}

// Values makes records without keys.
func Values(values ...string) []Record {
	records := make([]Record, len(values))
	for i, value := range values {
		records[i].Value = []byte(value)
	}
	return records
}

// KeyValue makes one record with a key.
func KeyValue(key, value string) Record {
	return Record{Key: []byte(key), Value: []byte(value)}
}

// Produce writes the records to the partition, in order and once, and returns the offset of the first when all are stored.
func Produce(addrs []string, topic string, partition int32, records ...Record) (first int64, err error) {
	if len(records) == 0 {
		return -1, nil
	}
	cfg := config(addrs)
	WriteOnce(cfg)

	messages := make([]*sarama.ProducerMessage, len(records))
	for i, record := range records {
		msg := &sarama.ProducerMessage{
			Topic: topic, Partition: partition, Headers: record.Headers, Timestamp: record.Timestamp,
		}
		if record.Key != nil {
			msg.Key = sarama.ByteEncoder(record.Key)
		}
		if record.Value != nil {
			msg.Value = sarama.ByteEncoder(record.Value)
		}
		messages[i] = msg
	}
	client, err := sarama.NewClient(addrs, cfg)
	if err != nil {
		return -1, fmt.Errorf("producing to %s/%d: %w", topic, partition, err)
	}
	err = send(client, topic, partition, messages)
	if err := errors.Join(err, client.Close()); err != nil {
		return -1, fmt.Errorf("producing to %s/%d: %w", topic, partition, err)
	}
	return messages[0].Offset, nil
}

func send(client sarama.Client, topic string, partition int32, messages []*sarama.ProducerMessage) error {
	// A producer takes no message for a partition that its broker has not heard of yet.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(pollInterval) {
		_, err := client.Leader(topic, partition)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
	}
	producer, err := sarama.NewSyncProducerFromClient(client)
	if err != nil {
		return err
	}
	err = errors.Join(producer.SendMessages(messages), producer.Close())
	if failed := (sarama.ProducerErrors)(nil); errors.As(err, &failed) {
		return fmt.Errorf("%w: %w", err, failed[0].Err)
	}
	return err
}

// Committed returns the offset that the broker stores for the group, -1 if none.
func Committed(addrs []string, group, topic string, partition int32) (int64, error) {
	offset := int64(-1)
	err := committed(addrs, group, map[string][]int32{topic: {partition}}, func(_ string, _ int32, stored int64) {
		offset = stored
	})
	return offset, err
}

// CommittedAll returns the stored offsets of all partitions of the topic that have one.
func CommittedAll(addrs []string, group, topic string) (map[int32]int64, error) {
	offsets := map[int32]int64{}
	err := committed(addrs, group, nil, func(t string, partition int32, stored int64) {
		if t == topic && stored >= 0 {
			offsets[partition] = stored
		}
	})
	return offsets, err
}

func committed(addrs []string, group string, partitions map[string][]int32, each func(string, int32, int64)) error {
	err := withAdmin(addrs, func(admin sarama.ClusterAdmin) error {
		resp, err := admin.ListConsumerGroupOffsets(group, partitions)
		if errors.Is(err, sarama.ErrGroupIDNotFound) { // kfake; Kafka responds that nothing is stored
			return nil
		}
		if err != nil {
			return err
		}
		for topic, blocks := range resp.Blocks {
			for partition, block := range blocks {
				if block.Err != sarama.ErrNoError {
					return fmt.Errorf("%s/%d: %w", topic, partition, block.Err)
				}
				each(topic, partition, block.Offset)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading the offsets of group %s: %w", group, err)
	}
	return nil
}

// WaitCommitted polls until the stored offset is at least want, and fails after the time given.
func WaitCommitted(addrs []string, group, topic string, partition int32, want int64, within time.Duration) error {
	deadline := time.Now().Add(within)
	for {
		offset, err := Committed(addrs, group, topic, partition)
		if err == nil && offset >= want {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(err, fmt.Errorf("group %s, %s/%d: committed %d after %v, want %d",
				group, topic, partition, offset, within, want))
		}
		time.Sleep(pollInterval)
	}
}

// ResetOffset stores an offset for a group, which must have no members.
func ResetOffset(addrs []string, group, topic string, partition int32, offset int64) error {
	err := withAdmin(addrs, func(admin sarama.ClusterAdmin) error {
		resp, err := admin.AlterConsumerGroupOffsets(group, map[string]map[int32]sarama.OffsetAndMetadata{
			topic: {partition: {Offset: offset, LeaderEpoch: -1}},
		}, nil)
		if err != nil {
			return err
		}
		if code := resp.Errors[topic][partition]; code != sarama.ErrNoError {
			return code
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("setting the offset of group %s at %s/%d to %d: %w", group, topic, partition, offset, err)
	}
	return nil
}

// StartOffset returns the offset of the oldest record.
func StartOffset(addrs []string, topic string, partition int32) (int64, error) {
	return listOffset(addrs, topic, partition, sarama.OffsetOldest)
}

// EndOffset returns the offset that the next record gets.
func EndOffset(addrs []string, topic string, partition int32) (int64, error) {
	return listOffset(addrs, topic, partition, sarama.OffsetNewest)
}

func listOffset(addrs []string, topic string, partition int32, which int64) (offset int64, err error) {
	err = withClient(addrs, func(client sarama.Client) error {
		offset, err = client.GetOffset(topic, partition, which)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("asking for an offset of %s/%d: %w", topic, partition, err)
	}
	return offset, nil
}

// DeleteRecords deletes the partition's records below the offset.
func DeleteRecords(addrs []string, topic string, partition int32, before int64) error {
	err := withAdmin(addrs, func(admin sarama.ClusterAdmin) error {
		return admin.DeleteRecords(topic, map[int32]int64{partition: before})
	})
	if err != nil {
		return fmt.Errorf("deleting records of %s/%d: %w", topic, partition, err)
	}
	return nil
}

// Members returns how many members the group has, and its state, such as "Stable" or "Empty".
func Members(addrs []string, group string) (members int, state string, err error) {
	err = withAdmin(addrs, func(admin sarama.ClusterAdmin) error {
		groups, err := admin.DescribeConsumerGroups([]string{group})
		if err != nil {
			return err
		}
		i := slices.IndexFunc(groups, func(g *sarama.GroupDescription) bool { return g.GroupId == group })
		if i < 0 {
			return errors.New("not in the response")
		}
		members, state = len(groups[i].Members), groups[i].State
		if groups[i].Err != sarama.ErrNoError {
			return groups[i].Err
		}
		return nil
	})
	if err != nil {
		return 0, "", fmt.Errorf("describing group %s: %w", group, err)
	}
	return members, state, nil
}
