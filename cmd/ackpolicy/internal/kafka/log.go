package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// ErrNoTopic is that there is no topic of the name.
var ErrNoTopic = errors.New("the topic does not exist")

// Log is where a partition starts and ends.
type Log struct{ From, To int64 }

// Logs returns where partitions start and end, per topic and partition. For a reader that sees
// only what is committed, an open transaction ends a partition. It asks each leader once, and
// again while there is none.
func Logs(ctx context.Context, client sarama.Client, topics map[string][]int32, isolation sarama.IsolationLevel) (map[string]map[int32]Log, error) {
	logs := map[string]map[int32]Log{}
	for topic := range topics {
		logs[topic] = map[int32]Log{}
	}
	for deadline := time.Now().Add(Patience); ; {
		err := leadersLogs(client, topics, logs, isolation)
		if err == nil {
			return logs, nil
		}
		if !passing(err) || time.Now().After(deadline) {
			return nil, fmt.Errorf("cannot learn where the partitions end: %w", err)
		}
		if !wait.For(readPause, ctx.Done()) {
			return nil, context.Cause(ctx)
		}
		for topic := range topics {
			_ = client.RefreshMetadata(topic)
		}
	}
}

func leadersLogs(client sarama.Client, topics map[string][]int32, logs map[string]map[int32]Log, isolation sarama.IsolationLevel) error {
	type asked struct {
		topic     string
		partition int32
	}
	byLeader := map[*sarama.Broker][]asked{}
	for topic, partitions := range topics {
		for _, p := range partitions {
			leader, err := client.Leader(topic, p)
			if err != nil {
				return fmt.Errorf("%s, partition %d: %w", topic, p, err)
			}
			byLeader[leader] = append(byLeader[leader], asked{topic, p})
		}
	}
	for leader, all := range byLeader {
		for _, which := range []int64{sarama.OffsetOldest, sarama.OffsetNewest} {
			request := sarama.NewOffsetRequest(client.Config().Version)
			request.IsolationLevel = isolation
			for _, a := range all {
				request.AddBlock(a.topic, a.partition, which, 1)
			}
			response, err := leader.GetAvailableOffsets(request)
			if err != nil {
				_ = leader.Close()
				return err
			}
			for _, a := range all {
				block := response.GetBlock(a.topic, a.partition)
				switch {
				case block == nil:
					return sarama.ErrIncompleteResponse
				case block.Err != sarama.ErrNoError:
					return fmt.Errorf("%s, partition %d: %w", a.topic, a.partition, block.Err)
				case which == sarama.OffsetOldest:
					logs[a.topic][a.partition] = Log{block.Offset, block.Offset}
				default:
					log := logs[a.topic][a.partition]
					logs[a.topic][a.partition] = Log{log.From, max(log.From, block.Offset)}
				}
			}
		}
	}
	return nil
}

// passing reports whether an error is one of a broker that is restarted, or a leader that moves.
func passing(err error) bool {
	return lost(err) || slices.ContainsFunc([]error{
		sarama.ErrLeaderNotAvailable, sarama.ErrNotLeaderForPartition, sarama.ErrUnknownLeaderEpoch, sarama.ErrFencedLeaderEpoch,
		sarama.ErrReplicaNotAvailable, sarama.ErrKafkaStorageError, sarama.ErrOffsetNotAvailable, sarama.ErrOutOfBrokers,
	}, func(target error) bool { return errors.Is(err, target) })
}

// Topic is what is known of a topic.
type Topic struct {
	ID         [16]byte // zero: not known
	Cluster    uint32   // see [ledger.Ledger]
	Partitions []int32
}

// Topics returns the topics of these names, without those that do not exist.
func Topics(client sarama.Client, names []string) (map[string]Topic, error) {
	if len(names) == 0 {
		return nil, nil // and not all
	}
	broker := client.LeastLoadedBroker()
	if broker == nil {
		return nil, sarama.ErrOutOfBrokers
	}
	response, err := broker.GetMetadata(sarama.NewMetadataRequest(client.Config().Version, names))
	if err != nil {
		_ = broker.Close()
		return nil, fmt.Errorf("cannot ask for the topics: %w", err)
	}
	cluster := uint32(0)
	if response.ClusterID != nil {
		cluster = ledger.ClusterOf(*response.ClusterID)
	}
	topics := map[string]Topic{}
	for _, t := range response.Topics {
		switch {
		case errors.Is(t.Err, sarama.ErrUnknownTopicOrPartition):
		case t.Err != sarama.ErrNoError && t.Err != sarama.ErrLeaderNotAvailable:
			return nil, fmt.Errorf("topic %s: %w", t.Name, t.Err)
		default:
			topic := Topic{ID: t.Uuid, Cluster: cluster}
			for _, p := range t.Partitions {
				topic.Partitions = append(topic.Partitions, p.ID)
			}
			slices.Sort(topic.Partitions)
			topics[t.Name] = topic
		}
	}
	return topics, nil
}
