package reread

import (
	"math"
	"reflect"

	"github.com/IBM/sarama"
)

// Tail is what a partition holds for a consumer from an offset on.
type Tail struct {
	End     int64 // of the partition; what an open transaction holds back does not count
	Next    int64 // the offset asked for, or the one behind what no consumer gets: control records, aborted ones, batches that compaction emptied
	Waiting bool  // a consumer at Next should get something
}

// patience is how long a broker that has nothing at hand may look for it.
const patience = 500 // ms

// Tail answers what a consumer that has read up to an offset still has to get.
func (r *Reader) Tail(from int64) (Tail, error) {
	t := Tail{Next: from}
	leader, err := r.client.Leader(r.topic, r.partition)
	if err != nil {
		return t, err
	}
	config := r.client.Config()
	request := sarama.NewOffsetRequest(config.Version)
	request.IsolationLevel = config.Consumer.IsolationLevel
	request.AddBlock(r.topic, r.partition, sarama.OffsetNewest, 1)
	response, err := leader.GetAvailableOffsets(request)
	if err != nil {
		return t, r.lost(leader, err)
	}
	end := response.GetBlock(r.topic, r.partition)
	switch {
	case end == nil:
		return t, sarama.ErrIncompleteResponse
	case end.Err != sarama.ErrNoError:
		_ = r.client.RefreshMetadata(r.topic)
		return t, end.Err
	case len(end.Offsets) == 1:
		t.End = end.Offsets[0]
	default:
		t.End = end.Offset
	}
	if t.End <= from {
		return t, nil
	}
	fetch := r.request(from)
	fetch.MaxWaitTime, fetch.MinBytes = patience, 1
	fetch.Isolation = config.Consumer.IsolationLevel
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
	t.Waiting = true // also where the broker says there is more, and does not send it
	for _, set := range block.RecordsSet {
		batch := set.RecordBatch
		if batch == nil || !(batch.Control || aborted(batch, block.AbortedTransactions)) {
			return t, nil
		}
		t.Next = max(t.Next, batch.LastOffset()+1)
	}
	emptied := emptiedUpTo(block)
	t.Next = max(t.Next, emptied)
	t.Waiting = t.Next < t.End && len(block.RecordsSet) == 0 && emptied < 0
	return t, nil
}

// emptiedUpTo returns the offset behind the last batch of an answer, which may be one that
// compaction emptied: Kafka keeps it for its producer's sequence, and sarama's decoder drops it
// and keeps only where it ends, in a field of its own. -1: the answer has no batch.
func emptiedUpTo(block *sarama.FetchResponseBlock) int64 {
	next := reflect.ValueOf(block).Elem().FieldByName("recordsNextOffset")
	if next.Kind() != reflect.Pointer || next.IsNil() {
		return -1 // or sarama has renamed it: then such a batch is taken for records
	}
	return next.Elem().Int()
}

// aborted may take a later, committed batch of the same producer for an aborted
// one: a look at the next offset then finds out.
func aborted(batch *sarama.RecordBatch, transactions []*sarama.AbortedTransaction) bool {
	for _, t := range transactions {
		if batch.IsTransactional && t.ProducerID == batch.ProducerID && t.FirstOffset <= batch.LastOffset() {
			return true
		}
	}
	return false
}

func (r *Reader) lost(leader *sarama.Broker, err error) error {
	_ = leader.Close()
	_ = r.client.RefreshMetadata(r.topic)
	return err
}

// request asks for records from an offset on.
func (r *Reader) request(offset int64) *sarama.FetchRequest {
	config := r.client.Config()
	request := newRequest(config)
	request.AddBlock(r.topic, r.partition, offset, config.Consumer.Fetch.Default, -1)
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
