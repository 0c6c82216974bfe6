package reread

import (
	"cmp"
	"encoding/binary"
	"math"
	"reflect"
	"slices"

	"github.com/IBM/sarama"
)

// Tail is what a partition holds for a consumer from an offset on.
type Tail struct {
	End     int64 // of the partition; what an open transaction holds back does not count
	Next    int64 // the offset asked for, or the one behind what no consumer gets: control records, aborted ones, what compaction removed
	Waiting bool  // a consumer at Next should get something
}

const (
	// patience is how long a broker that has nothing at hand may look for it, in milliseconds.
	patience = 500
	// tailBytes is how much is read of what follows: the first batch comes whole in any case.
	tailBytes = 64 << 10
)

// Tail returns what a consumer that has read up to an offset still has to get. It never
// passes a record that such a consumer gets. Once stop is closed its requests are cut short.
func (r *Reader) Tail(stop <-chan struct{}, from int64) (Tail, error) {
	defer r.abortLate(stop)()
	t := Tail{Next: from}
	leader, err := r.client.Leader(r.topic, r.partition)
	if err != nil {
		return t, err
	}
	if t.End, err = r.end(leader); err != nil || t.End <= from {
		return t, err
	}
	fetch := r.request(from, tailBytes)
	fetch.MaxWaitTime, fetch.MinBytes = patience, 1
	fetch.Isolation = r.client.Config().Consumer.IsolationLevel
	records, err := leader.Fetch(fetch)
	if err != nil {
		return t, r.lost(leader, err)
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
	// Also where the broker says that there is more, and does not send it. What it may
	// hold beyond a batch that was passed another question finds out.
	t.Waiting = t.Next < t.End && (hasRecord(block, passed) || len(block.RecordsSet) == 0 && emptied < 0)
	return t, nil
}

// end returns the offset up to which consumers get records.
func (r *Reader) end(leader *sarama.Broker) (int64, error) {
	config := r.client.Config()
	request := sarama.NewOffsetRequest(config.Version)
	request.IsolationLevel = config.Consumer.IsolationLevel
	request.AddBlock(r.topic, r.partition, sarama.OffsetNewest, 1)
	response, err := leader.GetAvailableOffsets(request)
	if err != nil {
		return 0, r.lost(leader, err)
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

// passedBy returns the offset behind the batches at the beginning of an answer that hold
// nothing for a consumer at from, -1 if the first one does. It goes by what sarama's
// consumer does, and Java's.
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

// hasRecord reports whether an answer holds something behind what was passed.
func hasRecord(block *sarama.FetchResponseBlock, passed int64) bool {
	if len(block.RecordsSet) == 0 {
		return false
	}
	last := block.RecordsSet[len(block.RecordsSet)-1].RecordBatch
	return last == nil || last.LastOffset() >= passed
}

// isAbort reports whether a control batch ends a transaction whose records nobody gets.
func isAbort(batch *sarama.RecordBatch) bool {
	const versionAndType = 4
	if len(batch.Records) == 0 || len(batch.Records[0].Key) < versionAndType {
		return false
	}
	return binary.BigEndian.Uint16(batch.Records[0].Key[2:]) == uint16(sarama.ControlRecordAbort)
}

// emptiedUpTo returns the offset behind the batches of an answer that has nothing but such as
// compaction emptied: Kafka keeps one for its producer's sequence, and sarama's decoder drops it
// and keeps only where it ends, in a field of its own. -1: there is another one, or none. What follows
// records there may be half a batch.
func emptiedUpTo(block *sarama.FetchResponseBlock) int64 {
	if len(block.RecordsSet) > 0 || block.Partial {
		return -1
	}
	return behind(block)
}

// behind returns the offset behind the last batch of an answer, whole or not, -1 if it has none.
func behind(block *sarama.FetchResponseBlock) int64 {
	next := reflect.ValueOf(block).Elem().FieldByName("recordsNextOffset")
	if next.Kind() != reflect.Pointer || next.IsNil() {
		return -1 // or sarama has renamed it: then such a batch is taken for records
	}
	return next.Elem().Int()
}

func (r *Reader) lost(leader *sarama.Broker, err error) error {
	_ = leader.Close()
	_ = r.client.RefreshMetadata(r.topic)
	return err
}

// request asks for records from an offset on.
func (r *Reader) request(offset int64, most int32) *sarama.FetchRequest {
	config := r.client.Config()
	request := newRequest(config)
	request.AddBlock(r.topic, r.partition, offset, most, -1)
	return request
}

func newRequest(config *sarama.Config) *sarama.FetchRequest {
	// From version 3 on the first batch comes whole, however large.
	request := &sarama.FetchRequest{MaxBytes: math.MaxInt32, SessionEpoch: -1, Version: 4}
	switch {
	case config.Version.IsAtLeast(sarama.V2_1_0_0):
		request.Version = 10 // zstd
	case config.Version.IsAtLeast(sarama.V1_1_0_0):
		request.Version = 7
	}
	return request
}
