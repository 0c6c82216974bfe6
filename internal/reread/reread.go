// Package reread reads single records again from the broker, by offset: those
// that a subscription pushed out of its memory while they waited.
package reread

import (
	"errors"
	"math"

	"github.com/IBM/sarama"
)

// ErrGone is the answer for a record that the log no longer holds: retention or
// compaction removed it meanwhile.
var ErrGone = errors.New("the record is no longer in the log: retention or compaction removed it")

// Reader reads the records of one partition. It keeps what came along with the
// last one asked for, since records that waited together come up together.
type Reader struct {
	client    sarama.Client // not the one that consumes: a read would wait behind its fetch
	topic     string
	partition int32
	turn      chan struct{}                     // held by whoever fetches
	ahead     map[int64]*sarama.ConsumerMessage // guarded by turn
}

// New returns a reader. It needs no closing.
func New(client sarama.Client, topic string, partition int32) *Reader {
	return &Reader{
		client: client, topic: topic, partition: partition,
		turn: make(chan struct{}, 1),
	}
}

// ErrStopped is the answer once stop is closed.
var ErrStopped = errors.New("stopped")

// Read answers the record at an offset, or ErrGone. Another error may pass: try again.
func (r *Reader) Read(stop <-chan struct{}, offset int64) (*sarama.ConsumerMessage, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-stop:
		return nil, ErrStopped
	}
	if m := r.take(offset); m != nil {
		return m, nil
	}
	records, err := r.fetch(offset)
	if err != nil {
		return nil, err
	}
	r.ahead = records
	if m := r.take(offset); m != nil {
		return m, nil
	}
	return nil, ErrGone // the log goes on behind it
}

func (r *Reader) take(offset int64) *sarama.ConsumerMessage {
	m := r.ahead[offset]
	delete(r.ahead, offset)
	return m
}

// errThrottled: the broker held back what it has.
var errThrottled = errors.New("the broker answered with no records")

func (r *Reader) fetch(offset int64) (map[int64]*sarama.ConsumerMessage, error) {
	leader, err := r.client.Leader(r.topic, r.partition)
	if err != nil {
		return nil, err
	}
	config := r.client.Config()
	// From version 3 on the first batch comes whole, however large.
	request := &sarama.FetchRequest{MaxBytes: math.MaxInt32, SessionEpoch: -1, Version: 4}
	switch {
	case config.Version.IsAtLeast(sarama.V2_1_0_0):
		request.Version = 10 // zstd
	case config.Version.IsAtLeast(sarama.V1_1_0_0):
		request.Version = 7
	}
	request.AddBlock(r.topic, r.partition, offset, config.Consumer.Fetch.Default, -1)
	response, err := leader.Fetch(request)
	if err != nil {
		_ = leader.Close()
		_ = r.client.RefreshMetadata(r.topic)
		return nil, err
	}
	block := response.GetBlock(r.topic, r.partition)
	switch {
	case block == nil:
		return nil, sarama.ErrIncompleteResponse
	case errors.Is(block.Err, sarama.ErrOffsetOutOfRange):
		return nil, ErrGone
	case block.Err != sarama.ErrNoError:
		_ = r.client.RefreshMetadata(r.topic)
		return nil, block.Err
	case len(block.RecordsSet) == 0 && offset < block.HighWaterMarkOffset:
		return nil, errThrottled
	}
	records := map[int64]*sarama.ConsumerMessage{}
	for _, set := range block.RecordsSet {
		switch {
		case set.RecordBatch != nil && !set.RecordBatch.Control:
			r.addBatch(records, set.RecordBatch, offset)
		case set.MsgSet != nil:
			r.addLegacy(records, set.MsgSet, offset)
		}
	}
	return records, nil
}

func (r *Reader) addBatch(records map[int64]*sarama.ConsumerMessage, batch *sarama.RecordBatch, from int64) {
	for _, rec := range batch.Records {
		offset := batch.FirstOffset + rec.OffsetDelta
		if offset < from {
			continue
		}
		timestamp := batch.FirstTimestamp.Add(rec.TimestampDelta)
		if batch.LogAppendTime {
			timestamp = batch.MaxTimestamp
		}
		records[offset] = &sarama.ConsumerMessage{
			Topic: r.topic, Partition: r.partition, Offset: offset,
			Key: rec.Key, Value: rec.Value, Headers: rec.Headers, Timestamp: timestamp,
		}
	}
}

// addLegacy is addBatch for logs written before Kafka 0.11.
func (r *Reader) addLegacy(records map[int64]*sarama.ConsumerMessage, set *sarama.MessageSet, from int64) {
	for _, outer := range set.Messages {
		inner := outer.Messages()
		for _, m := range inner {
			offset, timestamp := m.Offset, m.Msg.Timestamp
			if m.Msg.Version >= 1 { // relative inside a compressed set
				offset += outer.Offset - inner[len(inner)-1].Offset
				if m.Msg.LogAppendTime {
					timestamp = outer.Msg.Timestamp
				}
			}
			if offset < from {
				continue
			}
			records[offset] = &sarama.ConsumerMessage{
				Topic: r.topic, Partition: r.partition, Offset: offset,
				Key: m.Msg.Key, Value: m.Msg.Value, Timestamp: timestamp, BlockTimestamp: outer.Msg.Timestamp,
			}
		}
	}
}
