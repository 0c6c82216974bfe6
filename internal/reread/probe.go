package reread

import (
	"errors"

	"github.com/IBM/sarama"
)

// Position is where a consumer reads a partition: the next offset, and the leader that it knows.
type Position struct {
	Offset        int64
	Leader, Epoch int32
}

// Probe asks leaders for the next records of partitions. It returns an error for each
// partition that cannot be fetched, and nil for the others.
func Probe(client sarama.Client, topic string, at map[int32]Position) map[int32]error {
	errs := map[int32]error{}
	requests := map[*sarama.Broker]*sarama.FetchRequest{}
	asked := map[*sarama.Broker][]int32{}
	for p, position := range at {
		leader, err := client.Broker(position.Leader)
		if err != nil {
			errs[p] = err
			continue
		}
		if requests[leader] == nil {
			requests[leader] = newRequest(client.Config())
			requests[leader].MaxBytes = 1 // the first batch is always sent whole
		}
		requests[leader].AddBlock(topic, p, position.Offset, 1, position.Epoch)
		asked[leader] = append(asked[leader], p)
	}
	for leader, request := range requests {
		response, err := leader.Fetch(request)
		if err != nil {
			_ = leader.Close()
		}
		for _, p := range asked[leader] {
			errs[p] = err
			if err == nil {
				errs[p] = blockError(response.GetBlock(topic, p))
			}
		}
	}
	return errs
}

func blockError(block *sarama.FetchResponseBlock) error {
	switch {
	case block == nil:
		return sarama.ErrIncompleteResponse
	case block.Err == sarama.ErrNoError, errors.Is(block.Err, sarama.ErrOffsetOutOfRange): // the consumer notices it itself
		return nil
	}
	return block.Err
}
