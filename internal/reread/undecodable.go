package reread

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/IBM/sarama"
)

// IsUndecodable reports whether a fetch failed because of the content of its response, not
// because of the connection or an error that the broker returned.
func IsUndecodable(err error) bool {
	var code sarama.KError
	var connection net.Error
	if err == nil || errors.As(err, &code) || errors.As(err, &connection) {
		return false
	}
	for _, other := range []error{
		io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, sarama.ErrNotConnected, sarama.ErrClosedClient, sarama.ErrOutOfBrokers,
		sarama.ErrIncompleteResponse, sarama.ErrConsumerRetriesExhausted, sarama.ErrMessageTooLarge, sarama.ErrAlreadyConnected,
	} {
		if errors.Is(err, other) {
			return false
		}
	}
	return true
}

// lookFor is how long Undecodable searches for the batch.
const lookFor = 3 * time.Second

// Undecodable fetches from an offset on, as the consumer does. If the response cannot be
// decoded, it returns where the undecodable batch begins, as exactly as it can find out, and
// the reason; otherwise -1 and nil. err is set if the broker could not be asked. Once stop
// is closed, its requests are cut.
func (r *Reader) Undecodable(stop <-chan struct{}, from int64) (offset int64, reason, err error) {
	defer r.abortLate(stop)()
	_, reason, err = r.try(stop, from, r.client.Config().Consumer.Fetch.Default)
	if reason == nil {
		return -1, nil, err
	}
	for deadline := time.Now().Add(lookFor); time.Now().Before(deadline); {
		next, why, err := r.try(stop, from, 1) // the first batch is always sent whole
		if why != nil {
			return from, why, nil
		}
		if err != nil || next <= from {
			break
		}
		from = next
	}
	return from, reason, nil
}

// try fetches and returns the offset after what was sent. reason is why that cannot be decoded.
func (r *Reader) try(stop <-chan struct{}, from int64, bytes int32) (next int64, reason, err error) {
	leader, err := r.client.Leader(r.topic, r.partition)
	if err != nil {
		return -1, nil, err
	}
	request := newRequest(r.client.Config())
	request.AddBlock(r.topic, r.partition, from, bytes, -1)
	response, err := leader.Fetch(request)
	switch {
	case IsUndecodable(err):
		return -1, err, nil
	case err != nil:
		return -1, nil, r.lost(stop, leader, err)
	}
	if err := blockError(response.GetBlock(r.topic, r.partition)); err != nil {
		_ = r.client.RefreshMetadata(r.topic)
		return -1, nil, err
	}
	return behind(response.GetBlock(r.topic, r.partition)), nil, nil
}
