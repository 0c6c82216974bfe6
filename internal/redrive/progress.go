package redrive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// atCoordinator asks the group's coordinator, and asks again while there is none, or
// a transaction of the group is being ended.
func atCoordinator(ctx context.Context, client sarama.Client, group string, ask func(*sarama.Broker) error) error {
	for deadline := time.Now().Add(readPatience); ; {
		coordinator, err := client.Coordinator(group)
		if err == nil {
			if err = ask(coordinator); err == nil {
				return nil
			}
		}
		var network net.Error
		lost := errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, sarama.ErrNotConnected)
		if !lost && !slices.ContainsFunc([]error{
			sarama.ErrConsumerCoordinatorNotAvailable, sarama.ErrNotCoordinatorForConsumer, sarama.ErrOffsetsLoadInProgress,
			sarama.ErrUnstableOffsetCommit, sarama.ErrOutOfBrokers,
		}, func(target error) bool { return errors.Is(err, target) }) {
			return err
		}
		if lost && coordinator != nil {
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

// stored is the progress that Kafka stores for a partition.
type stored struct {
	offset   int64
	metadata string
}

// loadProgress answers what the group has stored for the partitions, without those
// for which it has nothing. A stable answer waits for transactions under way.
func loadProgress(ctx context.Context, client sarama.Client, group, topic string, partitions []int32, stable bool) (map[int32]stored, error) {
	found := map[int32]stored{}
	err := atCoordinator(ctx, client, group, func(coordinator *sarama.Broker) error {
		request := sarama.NewOffsetFetchRequest(client.Config().Version, group, map[string][]int32{topic: partitions})
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
		for _, p := range partitions {
			block := response.GetBlock(topic, p)
			switch {
			case block == nil:
				return sarama.ErrIncompleteResponse
			case errors.Is(block.Err, sarama.ErrGroupIDNotFound):
			case block.Err != sarama.ErrNoError:
				return block.Err
			case block.Offset >= 0:
				found[p] = stored{block.Offset, block.Metadata}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the progress of group %s: %w", group, err)
	}
	return found, nil
}

// marksOf returns what is done of a partition that has these bounds.
func marksOf(topic string, partition int32, s stored, log span) (*marks, error) {
	m, err := parseMarks(ledger.Place{Topic: topic, Partition: partition, Offset: s.offset}, s.metadata)
	if err != nil {
		return nil, err
	}
	last := m.floor
	if n := len(m.spans); n > 0 {
		last = m.spans[n-1].to
	}
	if last > log.to {
		return nil, fmt.Errorf("letters up to offset %d are marked as done, but the topic ends at %d: was it created again?", last-1, log.to)
	}
	m.add(span{m.floor, log.from}) // what retention took
	return m, nil
}
