// Package reread reads single records again from the broker, by offset, after a
// subscription pushed them out of memory while they waited.
package reread

import (
	"errors"
	"slices"

	"github.com/IBM/sarama"
)

// ErrGone is returned for a record that is no longer in the log: retention or compaction
// removed it.
var ErrGone = errors.New("the record is no longer in the log: retention or compaction removed it")

// Reader reads the records of one partition. It keeps records that came with those that
// were read lately, since records that waited together are due together.
type Reader struct {
	client    sarama.Client // not the client that consumes: a read would wait behind its fetch; nil after Drop
	topic     string
	partition int32
	abortLate func(stop <-chan struct{}) (done func())
	turn      chan struct{} // held by the goroutine that fetches
	ahead     []fetched     // the latest first; guarded by turn
	used      bool          // since the last Rest; guarded by turn
	oldest    int64         // the start of the log, as far as known; guarded by turn
}

// fetched has the records of a fetch that nobody has read yet, by offset.
type fetched map[int64]*sarama.ConsumerMessage

// kept is how many fetches are kept. Concurrent handlers read out of order, so each may
// read what lies just before the last fetch. A fetch keeps all of its bytes in memory.
const kept = 3

// New returns a reader. It need not be closed. abortLate cuts the client's requests that
// continue after stop is closed, until done is called. It may be nil.
func New(client sarama.Client, topic string, partition int32, abortLate func(stop <-chan struct{}) (done func())) *Reader {
	if abortLate == nil {
		abortLate = func(<-chan struct{}) func() { return func() {} }
	}
	return &Reader{
		client: client, topic: topic, partition: partition, abortLate: abortLate,
		turn: make(chan struct{}, 1),
	}
}

// ErrStopped is returned once stop is closed, and after Drop.
var ErrStopped = errors.New("stopped")

// Read returns the record at an offset. The error is ErrGone if there is none; after any
// other error, try again.
func (r *Reader) Read(stop <-chan struct{}, offset int64) (*sarama.ConsumerMessage, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-stop:
		return nil, ErrStopped
	}
	if r.client == nil {
		return nil, ErrStopped
	}
	r.used = true
	if m := r.take(offset); m != nil {
		return m, nil
	}
	if offset < r.oldest {
		return nil, ErrGone // retention often removes many records at once
	}
	abort := r.abortLate(stop)
	records, reached, err := r.fetch(stop, offset)
	abort()
	if err != nil {
		return nil, err
	}
	if len(records) > 0 {
		r.ahead = slices.Insert(r.ahead, 0, fetched(records))
		r.ahead = slices.Delete(r.ahead, min(len(r.ahead), kept), len(r.ahead))
	}
	if m := r.take(offset); m != nil {
		return m, nil
	}
	if reached {
		return nil, ErrGone // the log continues behind it
	}
	return nil, errNothing
}

// Rest drops fetched records if nobody has read since the last call.
func (r *Reader) Rest() {
	select {
	case r.turn <- struct{}{}:
		if !r.used {
			r.ahead = nil
		}
		r.used = false
		<-r.turn
	default: // somebody is reading
	}
}

// Drop drops fetched records and the client: whoever keeps the reader keeps neither. Read
// returns ErrStopped from then on, and nothing else may be called.
func (r *Reader) Drop() {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	r.ahead, r.client = nil, nil
}

// take returns a record that was fetched already, and removes it.
func (r *Reader) take(offset int64) (m *sarama.ConsumerMessage) {
	for _, f := range r.ahead {
		if m == nil {
			m = f[offset]
		}
		delete(f, offset)
	}
	r.ahead = slices.DeleteFunc(r.ahead, func(f fetched) bool { return len(f) == 0 })
	return m
}

// errNothing means that the broker throttles, or is a new leader that does not yet know how
// far its log is committed. The record may exist.
var errNothing = errors.New("the broker's response has no records")

// fetch returns the records from an offset on, and whether the log has something at or
// behind that offset.
func (r *Reader) fetch(stop <-chan struct{}, offset int64) (records map[int64]*sarama.ConsumerMessage, reached bool, err error) {
	leader, err := r.client.Leader(r.topic, r.partition)
	if err != nil {
		return nil, false, err
	}
	response, err := leader.Fetch(r.request(offset, r.client.Config().Consumer.Fetch.Default))
	if err != nil {
		return nil, false, r.lost(stop, leader, err)
	}
	block := response.GetBlock(r.topic, r.partition)
	switch {
	case block == nil:
		return nil, false, sarama.ErrIncompleteResponse
	case errors.Is(block.Err, sarama.ErrOffsetOutOfRange):
		// Below the start of the log it is gone. Above its end it is back once the leader has
		// caught up.
		oldest, err := r.client.GetOffset(r.topic, r.partition, sarama.OffsetOldest)
		if err != nil || offset >= oldest {
			return nil, false, errors.Join(block.Err, err)
		}
		r.oldest = oldest
		return nil, true, nil
	case block.Err != sarama.ErrNoError:
		_ = r.client.RefreshMetadata(r.topic)
		return nil, false, block.Err
	}
	records = map[int64]*sarama.ConsumerMessage{}
	for _, set := range block.RecordsSet {
		switch batch := set.RecordBatch; {
		case batch != nil:
			reached = reached || batch.LastOffset() >= offset
			if !batch.Control {
				r.addBatch(records, batch, offset)
			}
		case set.MsgSet != nil:
			r.addLegacy(records, set.MsgSet, offset)
			reached = reached || len(records) > 0
		}
	}
	return records, reached, nil
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
