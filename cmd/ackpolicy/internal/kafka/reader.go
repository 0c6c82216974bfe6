package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

const (
	fetchSize = 4 << 20
	readPause = 200 * time.Millisecond
	// An empty response that could have held records counts as the end from this one on.
	emptyResponses = 3
)

// Patience is how long a broker that is restarted, or a leader that moves, is waited for.
const Patience = time.Minute

// Reader reads from one partition. sarama's consumer does not say when what
// is left holds no more records, only marks of transactions: this one does.
type Reader struct {
	Client    sarama.Client
	Topic     string
	Partition int32
	Isolation sarama.IsolationLevel
}

// Read calls visit for each record from one offset (inclusive) to another (exclusive), with
// the offset from which on there is none before it, until visit fails. It returns the offset
// from which on there is no more record.
func (r *Reader) Read(ctx context.Context, from, to int64, visit func(m *sarama.ConsumerMessage, from int64) error) (rest int64, err error) {
	rest = from
	empty := 0
	deadline := time.Now().Add(Patience)
	for at := from; at < to; {
		if ctx.Err() != nil {
			return rest, context.Cause(ctx)
		}
		records, next, stable, err := r.fetch(at)
		if err == nil && next == at && stable >= to {
			// A fetch returns the first records there are: none are left below what is stable,
			// since compaction took the last ones. A response can be empty for other reasons, once.
			if empty++; empty == emptyResponses {
				return rest, nil
			}
		}
		if err == nil && next > at {
			empty = 0
			for _, m := range records {
				if m.Offset < at {
					continue
				}
				if m.Offset >= to {
					return rest, nil
				}
				if err := visit(m, rest); err != nil {
					return rest, err
				}
				rest = m.Offset + 1
			}
			at, deadline = next, time.Now().Add(Patience)
			continue
		}
		if time.Now().After(deadline) {
			return rest, fmt.Errorf("cannot read %s, partition %d, offset %d: %w", r.Topic, r.Partition, at, orNothing(err))
		}
		if !wait.For(readPause, ctx.Done()) {
			return rest, context.Cause(ctx)
		}
	}
	return rest, nil
}

func orNothing(err error) error {
	if err == nil {
		return errors.New("the broker responds without records")
	}
	return err
}

// fetch returns the records from an offset on, where to continue, and up to where
// the partition is stable for the reader.
func (r *Reader) fetch(from int64) (records []*sarama.ConsumerMessage, next, stable int64, err error) {
	leader, err := r.Client.Leader(r.Topic, r.Partition)
	if err != nil {
		_ = r.Client.RefreshMetadata(r.Topic)
		return nil, 0, 0, err
	}
	request := &sarama.FetchRequest{
		// From version 3 on the first batch comes whole, however large; 10 has zstd.
		Version: 10, MaxBytes: math.MaxInt32, SessionEpoch: -1, MaxWaitTime: 500, MinBytes: 1, Isolation: r.Isolation,
	}
	request.AddBlock(r.Topic, r.Partition, from, fetchSize, -1)
	response, err := leader.Fetch(request)
	if err != nil {
		_ = leader.Close()
		_ = r.Client.RefreshMetadata(r.Topic)
		return nil, 0, 0, err
	}
	block := response.GetBlock(r.Topic, r.Partition)
	switch {
	case block == nil:
		return nil, 0, 0, sarama.ErrIncompleteResponse
	case errors.Is(block.Err, sarama.ErrOffsetOutOfRange): // retention was quicker
		oldest, err := r.Client.GetOffset(r.Topic, r.Partition, sarama.OffsetOldest)
		if err != nil || oldest <= from {
			return nil, 0, 0, errors.Join(block.Err, err)
		}
		return nil, oldest, 0, nil
	case block.Err != sarama.ErrNoError:
		_ = r.Client.RefreshMetadata(r.Topic)
		return nil, 0, 0, block.Err
	}
	records, next = committed(block, from)
	for _, m := range records {
		m.Topic, m.Partition = r.Topic, r.Partition
	}
	stable = block.LastStableOffset
	if r.Isolation == sarama.ReadUncommitted {
		stable = block.HighWaterMarkOffset
	}
	return records, next, stable, nil
}

// committed returns the records of a response, without those of aborted transactions
// that it names, and the offset behind all of them.
func committed(block *sarama.FetchResponseBlock, from int64) (records []*sarama.ConsumerMessage, next int64) {
	next = from
	pending := slices.SortedFunc(slices.Values(block.AbortedTransactions), func(a, b *sarama.AbortedTransaction) int {
		return int(min(1, max(-1, a.FirstOffset-b.FirstOffset)))
	})
	aborted := map[int64]bool{} // by producer
	for _, set := range block.RecordsSet {
		batch := set.RecordBatch
		if batch == nil { // written before Kafka 0.11: without headers, no letters
			if set.MsgSet != nil {
				for _, m := range set.MsgSet.Messages {
					next = max(next, m.Offset+1)
				}
			}
			continue
		}
		if batch.PartialTrailingRecord {
			break
		}
		next = max(next, batch.LastOffset()+1)
		for len(pending) > 0 && pending[0].FirstOffset <= batch.LastOffset() {
			aborted[pending[0].ProducerID] = true
			pending = pending[1:]
		}
		if batch.Control {
			if len(batch.Records) > 0 && isAbort(batch.Records[0].Key) {
				delete(aborted, batch.ProducerID)
			}
			continue
		}
		if batch.IsTransactional && aborted[batch.ProducerID] {
			continue
		}
		for _, rec := range batch.Records {
			timestamp := batch.FirstTimestamp.Add(rec.TimestampDelta)
			if batch.LogAppendTime {
				timestamp = batch.MaxTimestamp
			}
			records = append(records, &sarama.ConsumerMessage{
				Offset: batch.FirstOffset + rec.OffsetDelta, Timestamp: timestamp, Key: rec.Key, Value: rec.Value, Headers: rec.Headers,
			})
		}
	}
	return records, next
}

// isAbort is whether the key of a control record says so: a version, and 0 for an abort.
func isAbort(key []byte) bool { return len(key) >= 4 && key[2] == 0 && key[3] == 0 }
