package commit

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// send stores what is due. It returns the broker's response for each, or the error because of which there is none, and
// whether the request was sent.
func (c *Committer) send(dues []due) (errs []error, sent bool, err error) {
	if c.cfg.Transact != nil {
		return c.transact(dues)
	}
	request := sarama.NewOffsetCommitRequest(c.cfg.Client.Config(), c.cfg.Group)
	request.ConsumerID = dues[0].member
	request.ConsumerGroupGeneration = dues[0].generation
	if request.Version >= 7 {
		request.GroupInstanceId = c.cfg.InstanceID
	}
	for _, d := range dues {
		// No leader epoch: sarama does not return it with records.
		request.AddBlockWithLeaderEpoch(d.source.cfg.Topic, d.source.cfg.Partition, d.snapshot.Offset, -1, 0, d.text)
	}
	coordinator, err := c.cfg.Client.Coordinator(c.cfg.Group)
	if err != nil {
		return nil, false, err
	}
	response, err := coordinator.CommitOffset(request)
	if err != nil {
		// The connection is in an unknown state. The client opens a new one.
		_ = coordinator.Close()
		return nil, true, err
	}
	for _, d := range dues {
		errs = append(errs, errorOf(response.Errors, d.source.cfg.Topic, d.source.cfg.Partition))
	}
	return errs, true, nil
}

var errNoResponse = errors.New("the broker's response does not name the partition")

func errorOf(errs map[string]map[int32]sarama.KError, topic string, partition int32) error {
	kerr, ok := errs[topic][partition]
	if !ok {
		return errNoResponse
	}
	if kerr == sarama.ErrNoError {
		return nil
	}
	return kerr
}

// isOneOf reports whether err is one of the given codes.
func isOneOf(err error, codes ...sarama.KError) bool {
	for _, code := range codes {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// refused reports whether a response proves that nothing was stored: Kafka returns these
// codes before it writes. It returns the others, also those about the coordinator, for a
// failed write too, which may nevertheless be in the log.
func refused(err error) bool {
	return isOneOf(err,
		sarama.ErrIllegalGeneration, sarama.ErrUnknownMemberId, sarama.ErrFencedInstancedId, sarama.ErrRebalanceInProgress,
		sarama.ErrOffsetsLoadInProgress, sarama.ErrOffsetMetadataTooLarge) || lasts(err)
}

// lasts reports whether a refusal will be repeated until somebody changes a right, a
// setting or a topic.
func lasts(err error) bool {
	return isOneOf(err,
		sarama.ErrUnknownTopicOrPartition, sarama.ErrTopicAuthorizationFailed, sarama.ErrGroupAuthorizationFailed,
		sarama.ErrInvalidCommitOffsetSize, sarama.ErrInvalidGroupId,
		sarama.ErrUnsupportedVersion, sarama.ErrInvalidTopic)
}

// moved reports whether a response means that another broker is the coordinator.
func moved(err error) bool {
	return isOneOf(err, sarama.ErrNotCoordinatorForConsumer, sarama.ErrConsumerCoordinatorNotAvailable)
}

// pause returns how long a partition waits after an attempt: from 20 ms, doubling. If it
// waits for the end of a rebalance, the time until the next one may be short.
func pause(attempt int, err error) time.Duration {
	most := time.Second
	switch {
	case isOneOf(err, sarama.ErrIllegalGeneration, sarama.ErrRebalanceInProgress):
		most = 100 * time.Millisecond
	case lasts(err):
		most = 10 * time.Second // a right may be given back
	}
	return wait.Backoff(attempt, 20*time.Millisecond, most)
}

// Position is what a group has stored for a partition.
type Position struct {
	Offset   int64 // -1 if nothing is stored
	Metadata string
}

// Positions returns what the group has stored for a partition and, where the broker returns it
// too, for others. It repeats requests whose failure may pass, until ctx ends. With stable it waits
// for transactions that may change the result.
func Positions(ctx context.Context, client sarama.Client, group, topic string, partition int32, others map[string][]int32, stable bool) (map[string]map[int32]Position, error) {
	asked := maps.Clone(others)
	if asked == nil {
		asked = map[string][]int32{}
	}
	if !slices.Contains(asked[topic], partition) {
		asked[topic] = append(slices.Clone(asked[topic]), partition)
	}
	for attempt := 1; ; attempt++ {
		positions, err := fetchPositions(client, group, topic, partition, asked, stable)
		if err == nil {
			return positions, nil
		}
		if attempt > 1 {
			_ = client.RefreshCoordinator(group)
		}
		if !wait.For(pause(attempt, nil), ctx.Done()) {
			return nil, errors.Join(err, context.Cause(ctx))
		}
	}
}

func fetchPositions(client sarama.Client, group, topic string, partition int32, asked map[string][]int32, stable bool) (map[string]map[int32]Position, error) {
	response, err := fetchOffsets(client, group, asked, stable)
	if err != nil {
		return nil, err
	}
	positions := map[string]map[int32]Position{}
	for of, partitions := range asked {
		positions[of] = map[int32]Position{}
		for _, p := range partitions {
			position, err := positionIn(response, of, p)
			switch {
			case err == nil:
				positions[of][p] = position
			case of == topic && p == partition:
				return nil, err
			}
		}
	}
	return positions, nil
}

// StablePosition returns what the group has stored for a partition, or an error while a
// transaction may change it.
func StablePosition(client sarama.Client, group, topic string, partition int32) (Position, error) {
	positions, err := fetchPositions(client, group, topic, partition, map[string][]int32{topic: {partition}}, true)
	return positions[topic][partition], err
}

func fetchOffsets(client sarama.Client, group string, partitions map[string][]int32, stable bool) (*sarama.OffsetFetchResponse, error) {
	coordinator, err := client.Coordinator(group)
	if err != nil {
		return nil, err
	}
	request := sarama.NewOffsetFetchRequest(client.Config().Version, group, partitions)
	request.RequireStable = stable && request.Version >= 7
	response, err := coordinator.FetchOffset(request)
	if err != nil {
		_ = coordinator.Close()
		return nil, err
	}
	return response, nil
}

// positionIn returns the position of a partition from a response.
func positionIn(response *sarama.OffsetFetchResponse, topic string, partition int32) (Position, error) {
	if kerr := response.GroupError(); errors.Is(kerr, sarama.ErrGroupIDNotFound) {
		return Position{Offset: -1}, nil // a group that never committed
	} else if kerr != sarama.ErrNoError {
		return Position{}, kerr
	}
	block := response.GetBlock(topic, partition)
	if block == nil {
		return Position{Offset: -1}, nil
	}
	if block.Err != sarama.ErrNoError {
		return Position{}, block.Err
	}
	return Position{block.Offset, block.Metadata}, nil
}
