package reread

import (
	"cmp"
	"encoding/binary"
	"math"
	"reflect"
	"slices"

	"github.com/IBM/sarama"
)

// Tail describes what a partition has for a consumer from an offset on.
type Tail struct {
	End     int64 // the end for consumers: what an open transaction holds back does not count
	Next    int64 // the offset asked for, or the one after what no consumer gets: control records, aborted records, what compaction removed
	Waiting bool  // a consumer at Next should receive something
}

const (
	// patience is how long a broker may wait for data, in milliseconds.
	patience = 500
	// tailBytes is how much is read; the first batch is always sent whole.
	tailBytes = 64 << 10
)

// Tail returns what a consumer that has read up to an offset has yet to receive. It never
// passes a record that such a consumer receives. Once stop is closed, its requests are cut.
func (r *Reader) Tail(stop <-chan struct{}, from int64) (Tail, error) {
	defer r.abortLate(stop)()
	t := Tail{Next: from}
	leader, err := r.client.Leader(r.topic, r.partition)
	if err != nil {
		return t, err
	}
	if t.End, err = r.end(stop, leader); err != nil || t.End <= from {
		return t, err
	}
	fetch := r.request(from, tailBytes)
	fetch.MaxWaitTime, fetch.MinBytes = patience, 1
	fetch.Isolation = r.client.Config().Consumer.IsolationLevel
	records, err := leader.Fetch(fetch)
	if err != nil {
		return t, r.lost(stop, leader, err)
	}
	block := records.GetBlock(r.topic, r.partition)
	switch {
	case block == nil:
		return t, sarama.ErrIncompleteResponse
	case block.Err != sarama.ErrNoError:
		_ = r.client.RefreshMetadata(r.topic)
		return t, block.Err
	case len(block.RecordsSet) == 0 && records.ThrottleTime > 0:
		return t, errNothing
	}
	passed := passedBy(block, from, fetch.Isolation == sarama.ReadCommitted)
	emptied := emptiedUpTo(block)
	t.Next = max(t.Next, passed, emptied)
	// Also if the broker says that there is more and does not send it. Another call finds
	// out what follows a batch that was passed.
	t.Waiting = t.Next < t.End && (hasRecord(block, passed) || len(block.RecordsSet) == 0 && emptied < 0)
	return t, nil
}

// end returns the offset up to which consumers receive records.
func (r *Reader) end(stop <-chan struct{}, leader *sarama.Broker) (int64, error) {
	config := r.client.Config()
	request := sarama.NewOffsetRequest(config.Version)
	request.IsolationLevel = config.Consumer.IsolationLevel
	request.AddBlock(r.topic, r.partition, sarama.OffsetNewest, 1)
	response, err := leader.GetAvailableOffsets(request)
	if err != nil {
		return 0, r.lost(stop, leader, err)
	}
	end := response.GetBlock(r.topic, r.partition)
	switch {
	case end == nil:
		return 0, sarama.ErrIncompleteResponse
	case end.Err != sarama.ErrNoError:
		_ = r.client.RefreshMetadata(r.topic)
		return 0, end.Err
	case len(end.Offsets) == 1:
		return end.Offsets[0], nil
	}
	return end.Offset, nil
}

// passedBy returns the offset after those batches at the beginning of a response that have
// nothing for a consumer at from, or -1 if the first one has something. It follows what
// sarama's consumer and Java's do.
func passedBy(block *sarama.FetchResponseBlock, from int64, committed bool) (next int64) {
	next = -1
	aborted := map[int64]bool{} // producers
	var transactions []*sarama.AbortedTransaction
	if committed {
		transactions = slices.SortedFunc(slices.Values(block.AbortedTransactions), func(a, b *sarama.AbortedTransaction) int {
			return cmp.Compare(a.FirstOffset, b.FirstOffset)
		})
	}
	for _, set := range block.RecordsSet {
		batch := set.RecordBatch
		if batch == nil || batch.PartialTrailingRecord {
			return next
		}
		for len(transactions) > 0 && transactions[0].FirstOffset <= batch.LastOffset() {
			aborted[transactions[0].ProducerID] = true
			transactions = transactions[1:]
		}
		switch {
		case batch.Control:
			if isAbort(batch) {
				delete(aborted, batch.ProducerID)
			}
		case batch.IsTransactional && aborted[batch.ProducerID]:
		case slices.ContainsFunc(batch.Records, func(rec *sarama.Record) bool { return batch.FirstOffset+rec.OffsetDelta >= from }):
			return next
		}
		next = batch.LastOffset() + 1
	}
	return next
}

// hasRecord reports whether a response has something behind what was passed.
func hasRecord(block *sarama.FetchResponseBlock, passed int64) bool {
	if len(block.RecordsSet) == 0 {
		return false
	}
	last := block.RecordsSet[len(block.RecordsSet)-1].RecordBatch
	return last == nil || last.LastOffset() >= passed
}

// isAbort reports whether a control batch aborts a transaction.
func isAbort(batch *sarama.RecordBatch) bool {
	const versionAndType = 4
	if len(batch.Records) == 0 || len(batch.Records[0].Key) < versionAndType {
		return false
	}
	return binary.BigEndian.Uint16(batch.Records[0].Key[2:]) == uint16(sarama.ControlRecordAbort)
}

// emptiedUpTo returns the offset after the batches of a response if compaction emptied all
// of them, otherwise -1. Kafka keeps an empty batch for its producer's sequence; sarama's
// decoder drops it and keeps only its end, in another field. What follows records in that
// field may be half a batch.
func emptiedUpTo(block *sarama.FetchResponseBlock) int64 {
	if len(block.RecordsSet) > 0 || block.Partial {
		return -1
	}
	return behind(block)
}

// behind returns the offset after the last batch of a response, whole or not, or -1 if it has none.
func behind(block *sarama.FetchResponseBlock) int64 {
	next := reflect.ValueOf(block).Elem().FieldByName("recordsNextOffset")
	if next.Kind() != reflect.Pointer || next.IsNil() {
		return -1 // or sarama has renamed the field; then such a batch counts as records
	}
	return next.Elem().Int()
}

// lost closes a connection whose request failed, and asks who leads the partition now. After stop
// nobody reads on: to ask would only prolong the time in which requests, also those of others,
// are cut.
func (r *Reader) lost(stop <-chan struct{}, leader *sarama.Broker, err error) error {
	_ = leader.Close()
	select {
	case <-stop:
	default:
		_ = r.client.RefreshMetadata(r.topic)
	}
	return err
}

// request returns a request for records from an offset on.
func (r *Reader) request(offset int64, most int32) *sarama.FetchRequest {
	config := r.client.Config()
	request := newRequest(config)
	request.AddBlock(r.topic, r.partition, offset, most, -1)
	return request
}

func newRequest(config *sarama.Config) *sarama.FetchRequest {
	// From version 3 on, the first batch is sent whole, however large.
	request := &sarama.FetchRequest{MaxBytes: math.MaxInt32, SessionEpoch: -1, Version: 4}
	switch {
	case config.Version.IsAtLeast(sarama.V2_1_0_0):
		request.Version = 10 // zstd
	case config.Version.IsAtLeast(sarama.V1_1_0_0):
		request.Version = 7
	}
	return request
}
