package brokertest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"
)

// readEnd is the key of a record that [Read] writes.
const readEnd = "brokertest.Read: the end"

// Read calls do with each committed record of the partition, until an error. It writes a record to know where that ends,
// and waits for open transactions, each time no longer than within.
func Read(addrs []string, topic string, partition int32, within time.Duration, do func(*sarama.ConsumerMessage) error) error {
	return read(config(addrs), addrs, topic, partition, within, do)
}

// ReadByBatch is Read that asks for one batch after the other: which aborted transactions a response names depends on
// where it ends.
func ReadByBatch(addrs []string, topic string, partition int32, within time.Duration, do func(*sarama.ConsumerMessage) error) error {
	cfg := config(addrs)
	cfg.Consumer.Fetch.Default = 1
	return read(cfg, addrs, topic, partition, within, do)
}

func read(cfg *sarama.Config, addrs []string, topic string, partition int32, within time.Duration, do func(*sarama.ConsumerMessage) error) (err error) {
	if _, err = Produce(addrs, topic, partition, KeyValue(readEnd, "")); err != nil {
		return err
	}
	cfg.Consumer.IsolationLevel = sarama.ReadCommitted
	consumer, err := sarama.NewConsumer(addrs, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, consumer.Close()) }()
	pc, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pc.Close()) }()
	for next := int64(0); ; {
		select {
		case msg := <-pc.Messages():
			next = msg.Offset + 1
			if string(msg.Key) == readEnd {
				return nil
			}
			if err := do(msg); err != nil {
				return err
			}
		case <-time.After(within):
			return fmt.Errorf("%s/%d: no committed record from %d on within %v", topic, partition, next, within)
		}
	}
}

// AbortedTwice describes the producers that have more than one aborted transaction in a partition of the topics. A replica
// that has been behind may show their records to read_committed readers (docs/design.md).
func AbortedTwice(addrs []string, topics ...string) (producers []string, err error) {
	client, err := sarama.NewClient(addrs, config(addrs))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	for _, topic := range topics {
		partitions, err := client.Partitions(topic)
		if err != nil {
			return nil, err
		}
		for _, p := range partitions {
			open, aborted := map[int64]bool{}, map[int64]int{}
			if err := eachBatch(client, topic, p, func(b *sarama.RecordBatch) {
				// A coordinator that has moved writes a marker once more.
				if open[b.ProducerID] && b.Control && bytes.Equal(b.Records[0].Key, abortMarker) {
					aborted[b.ProducerID]++
				}
				open[b.ProducerID] = !b.Control
			}); err != nil {
				return nil, fmt.Errorf("%s/%d: %w", topic, p, err)
			}
			for id, n := range aborted {
				if n > 1 {
					producers = append(producers, fmt.Sprintf("%s/%d: producer %d has %d", topic, p, id, n))
				}
			}
		}
	}
	return producers, nil
}

// abortMarker is the key of the record that ends an aborted transaction: two zeros, version and type.
var abortMarker = []byte{0, 0, 0, 0}

// eachBatch calls do with each batch of a partition, whatever became of its transaction.
func eachBatch(client sarama.Client, topic string, partition int32, do func(*sarama.RecordBatch)) error {
	offset, err := client.GetOffset(topic, partition, sarama.OffsetOldest)
	if err != nil {
		return err
	}
	for {
		leader, err := client.Leader(topic, partition)
		if err != nil {
			return err
		}
		request := &sarama.FetchRequest{Version: 5, MinBytes: 1, MaxBytes: 16 << 20}
		request.AddBlock(topic, partition, offset, 16<<20, -1)
		response, err := leader.Fetch(request)
		if err != nil {
			return err
		}
		block := response.GetBlock(topic, partition)
		if !errors.Is(block.Err, sarama.ErrNoError) {
			return block.Err
		}
		before := offset
		for _, records := range block.RecordsSet {
			if b := records.RecordBatch; b != nil && b.LastOffset() >= offset {
				do(b)
				offset = b.LastOffset() + 1
			}
		}
		if offset == before {
			return nil
		}
	}
}

// OpenTransactions describes the transactions that are open: those whose ids begin with the prefix, as their coordinators
// know them, and those with records in the topics, as the leaders do. A hanging one only the latter know.
func OpenTransactions(addrs []string, prefix string, topics ...string) (open []string, err error) {
	err = retry(func() error {
		open = nil
		cfg := config(addrs)
		cfg.Version = sarama.V3_0_0_0
		client, err := sarama.NewClient(addrs, cfg)
		if err != nil {
			return err
		}
		admin, err := sarama.NewClusterAdminFromClient(client)
		if err != nil {
			return errors.Join(err, client.Close())
		}
		open, err = openTransactions(client, admin.(sarama.TransactionClusterAdmin), prefix, topics)
		return errors.Join(err, admin.Close())
	})
	if err != nil {
		err = fmt.Errorf("looking for open transactions: %w", err)
	}
	slices.Sort(open)
	return open, err
}

func openTransactions(client sarama.Client, admin sarama.TransactionClusterAdmin, prefix string, topics []string) (open []string, err error) {
	listed, err := admin.ListTransactions([]string{"Ongoing", "PrepareCommit", "PrepareAbort"}, nil, -1)
	for _, t := range listed {
		if strings.HasPrefix(t.TransactionalID, prefix) {
			open = append(open, fmt.Sprintf("%s: %s", t.TransactionalID, t.TransactionState))
		}
	}
	asked := map[string][]int32{}
	for _, topic := range topics {
		partitions, partitionsErr := client.Partitions(topic)
		asked[topic], err = partitions, errors.Join(err, partitionsErr)
	}
	if err != nil {
		return nil, err
	}
	described, err := admin.DescribeProducers(asked)
	for topic, partitions := range described {
		for p, d := range partitions {
			if d.ErrorCode != sarama.ErrNoError {
				err = errors.Join(err, d.ErrorCode)
			}
			for _, producer := range d.ActiveProducers {
				if producer.CurrentTxnStartOffset >= 0 {
					open = append(open, fmt.Sprintf("%s/%d: producer %d from offset %d", topic, p, producer.ProducerID, producer.CurrentTxnStartOffset))
				}
			}
		}
	}
	return open, err
}

// MoveCoordinators has other brokers be the coordinators of groups and transactions, as far as their logs have replicas:
// it gives each partition another preferred leader, and elects those.
func MoveCoordinators(addrs []string) error {
	err := withAdmin(addrs, func(admin sarama.ClusterAdmin) error {
		topics, err := admin.DescribeTopics([]string{"__consumer_offsets", "__transaction_state"})
		if err != nil {
			return err
		}
		moved := map[string][]int32{}
		for _, topic := range topics {
			replicas := make([][]int32, len(topic.Partitions))
			for _, p := range topic.Partitions {
				replicas[p.ID] = append(p.Replicas[1:], p.Replicas[0])
				moved[topic.Name] = append(moved[topic.Name], p.ID)
			}
			if err := admin.AlterPartitionReassignments(topic.Name, replicas); err != nil {
				return err
			}
		}
		elected, err := admin.ElectLeaders(sarama.PreferredElection, moved)
		for topic, partitions := range elected {
			for p, result := range partitions {
				switch result.ErrorCode {
				case sarama.ErrNoError, sarama.ErrElectionNotNeeded, sarama.ErrPreferredLeaderNotAvailable: // it is not in sync
				default:
					err = errors.Join(err, fmt.Errorf("%s/%d: %w", topic, p, result.ErrorCode))
				}
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("moving coordinators: %w", err)
	}
	return nil
}
