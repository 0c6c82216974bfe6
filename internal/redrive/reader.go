package redrive

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
	// A broker that is restarted, or a leader that moves, is waited for this long.
	readPatience = time.Minute
	readPause    = 200 * time.Millisecond
	emptyAnswers = 3
)

// bounds answers where a partition starts and ends, for a reader that sees only
// what is committed: an open transaction ends it.
func bounds(client sarama.Client, topic string, partition int32) (span, error) {
	start, err := client.GetOffset(topic, partition, sarama.OffsetOldest)
	if err != nil {
		return span{}, err
	}
	leader, err := client.Leader(topic, partition)
	if err != nil {
		return span{}, err
	}
	request := sarama.NewOffsetRequest(client.Config().Version)
	request.IsolationLevel = sarama.ReadCommitted
	request.AddBlock(topic, partition, sarama.OffsetNewest, 1)
	response, err := leader.GetAvailableOffsets(request)
	if err != nil {
		_ = leader.Close()
		return span{}, err
	}
	block := response.GetBlock(topic, partition)
	switch {
	case block == nil:
		return span{}, sarama.ErrIncompleteResponse
	case block.Err != sarama.ErrNoError:
		return span{}, block.Err
	}
	return span{start, max(start, block.Offset)}, nil
}

// reader reads spans of one partition. sarama's consumer does not tell when what
// is left holds no more records, only marks of transactions: this one does.
type reader struct {
	client    sarama.Client
	topic     string
	partition int32
}

// read calls visit for each record in the span, with the offset from which on there
// is none before it, until visit fails. It answers the offset from which on there is
// no record in the span.
func (r *reader) read(ctx context.Context, s span, visit func(m *sarama.ConsumerMessage, from int64) error) (rest int64, err error) {
	rest = s.from
	empty := 0
	deadline := time.Now().Add(readPatience)
	for at := s.from; at < s.to; {
		if ctx.Err() != nil {
			return rest, context.Cause(ctx)
		}
		records, next, stable, err := r.fetch(at)
		if err == nil && next == at && stable >= s.to {
			// A fetch answers the first records there are: none are left below what is stable,
			// since compaction took the last ones. An answer can be empty for other reasons, once.
			if empty++; empty == emptyAnswers {
				return rest, nil
			}
		}
		if err == nil && next > at {
			empty = 0
			for _, m := range records {
				if m.Offset < at {
					continue
				}
				if m.Offset >= s.to {
					return rest, nil
				}
				if err := visit(m, rest); err != nil {
					return rest, err
				}
				rest = m.Offset + 1
			}
			at, deadline = next, time.Now().Add(readPatience)
			continue
		}
		if time.Now().After(deadline) {
			return rest, fmt.Errorf("cannot read %s, partition %d, offset %d: %w", r.topic, r.partition, at, orNothing(err))
		}
		if !wait.For(readPause, ctx.Done()) {
			return rest, context.Cause(ctx)
		}
	}
	return rest, nil
}

func orNothing(err error) error {
	if err == nil {
		return errors.New("the broker answered without records")
	}
	return err
}

// fetch answers the records from an offset on, where to go on, and up to where
// transactions have ended.
func (r *reader) fetch(from int64) (records []*sarama.ConsumerMessage, next, stable int64, err error) {
	leader, err := r.client.Leader(r.topic, r.partition)
	if err != nil {
		_ = r.client.RefreshMetadata(r.topic)
		return nil, 0, 0, err
	}
	request := &sarama.FetchRequest{
		// From version 3 on the first batch comes whole, however large; 10 has zstd.
		Version: 10, MaxBytes: math.MaxInt32, SessionEpoch: -1, MaxWaitTime: 500, MinBytes: 1, Isolation: sarama.ReadCommitted,
	}
	request.AddBlock(r.topic, r.partition, from, fetchSize, -1)
	response, err := leader.Fetch(request)
	if err != nil {
		_ = leader.Close()
		_ = r.client.RefreshMetadata(r.topic)
		return nil, 0, 0, err
	}
	block := response.GetBlock(r.topic, r.partition)
	switch {
	case block == nil:
		return nil, 0, 0, sarama.ErrIncompleteResponse
	case errors.Is(block.Err, sarama.ErrOffsetOutOfRange): // retention was quicker
		oldest, err := r.client.GetOffset(r.topic, r.partition, sarama.OffsetOldest)
		if err != nil || oldest <= from {
			return nil, 0, 0, errors.Join(block.Err, err)
		}
		return nil, oldest, 0, nil
	case block.Err != sarama.ErrNoError:
		_ = r.client.RefreshMetadata(r.topic)
		return nil, 0, 0, block.Err
	}
	records, next = committed(block, from)
	for _, m := range records {
		m.Topic, m.Partition = r.topic, r.partition
	}
	return records, next, block.LastStableOffset, nil
}

// committed answers the records of a response but for those of aborted transactions,
// and the offset behind all of them.
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
