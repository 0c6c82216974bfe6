package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// AtCoordinator calls ask with the group's coordinator, and calls it again while there is none, or
// a transaction of the group is being ended.
func AtCoordinator(ctx context.Context, client sarama.Client, group string, ask func(*sarama.Broker) error) error {
	for deadline := time.Now().Add(Patience); ; {
		coordinator, err := client.Coordinator(group)
		if err == nil {
			if err = ask(coordinator); err == nil {
				return nil
			}
		}
		gone := lost(err)
		if !gone && !slices.ContainsFunc([]error{
			sarama.ErrConsumerCoordinatorNotAvailable, sarama.ErrNotCoordinatorForConsumer, sarama.ErrOffsetsLoadInProgress,
			sarama.ErrUnstableOffsetCommit, sarama.ErrOutOfBrokers,
		}, func(target error) bool { return errors.Is(err, target) }) {
			return err
		}
		if gone && coordinator != nil {
			_ = coordinator.Close()
		}
		if time.Now().After(deadline) {
			return err
		}
		if !wait.For(readPause, ctx.Done()) {
			return context.Cause(ctx)
		}
		if !errors.Is(err, sarama.ErrUnstableOffsetCommit) {
			_ = client.RefreshCoordinator(group)
		}
	}
}

// lost reports whether an error is that of a connection.
func lost(err error) bool {
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, sarama.ErrNotConnected)
}

// Stored is what Kafka stores for a group and a partition.
type Stored struct {
	Offset   int64
	Metadata string
}

// Offsets returns what the group has stored, per topic and partition, without the partitions
// for which it has nothing. Nil topics are all. With stable, the broker's response waits for transactions under way.
func Offsets(ctx context.Context, client sarama.Client, group string, topics map[string][]int32, stable bool) (map[string]map[int32]Stored, error) {
	found := map[string]map[int32]Stored{}
	err := AtCoordinator(ctx, client, group, func(coordinator *sarama.Broker) error {
		request := sarama.NewOffsetFetchRequest(client.Config().Version, group, topics)
		request.RequireStable = stable
		response, err := coordinator.FetchOffset(request)
		switch {
		case err != nil:
			return err
		case errors.Is(response.Err, sarama.ErrGroupIDNotFound):
			return nil
		case response.Err != sarama.ErrNoError:
			return response.Err
		}
		for topic, partitions := range topics {
			for _, p := range partitions {
				if response.GetBlock(topic, p) == nil {
					return sarama.ErrIncompleteResponse
				}
			}
		}
		for topic, blocks := range response.Blocks {
			found[topic] = map[int32]Stored{}
			for p, block := range blocks {
				switch {
				case errors.Is(block.Err, sarama.ErrGroupIDNotFound):
				case block.Err != sarama.ErrNoError:
					return block.Err
				case block.Offset >= 0:
					found[topic][p] = Stored{block.Offset, block.Metadata}
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the offsets of group %s: %w", group, err)
	}
	return found, nil
}

// Describe returns the group's state and members.
func Describe(ctx context.Context, client sarama.Client, group string) (*sarama.GroupDescription, error) {
	var found *sarama.GroupDescription
	err := AtCoordinator(ctx, client, group, func(coordinator *sarama.Broker) error {
		response, err := coordinator.DescribeGroups(&sarama.DescribeGroupsRequest{Version: 5, Groups: []string{group}})
		switch {
		case err != nil:
			return err
		case len(response.Groups) != 1:
			return sarama.ErrIncompleteResponse
		case response.Groups[0].Err != sarama.ErrNoError:
			return response.Groups[0].Err
		}
		found = response.Groups[0]
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot describe group %s: %w", group, err)
	}
	return found, nil
}

// Store stores an offset for a group without members: Kafka refuses it for one that has some.
func Store(ctx context.Context, client sarama.Client, group, topic string, partition int32, to Stored) error {
	return AtCoordinator(ctx, client, group, func(coordinator *sarama.Broker) error {
		request := sarama.NewOffsetCommitRequest(client.Config(), group)
		request.AddBlockWithLeaderEpoch(topic, partition, to.Offset, -1, 0, to.Metadata)
		response, err := coordinator.CommitOffset(request)
		if err != nil {
			return err
		}
		if code, ok := response.Errors[topic][partition]; !ok {
			return sarama.ErrIncompleteResponse
		} else if code != sarama.ErrNoError {
			return code
		}
		return nil
	})
}
