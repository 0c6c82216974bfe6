package reread

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Compaction keeps a producer's last batch, also where it took all records out of it: nobody waits for those.
func TestEmptiedBatchIsNotWaitedFor(t *testing.T) {
	b := brokertest.NewFake(t)
	r := reader(t, b, "a", "b", "c")
	fetchResponse{end: 3, batches: [][]byte{emptiedBatch(1, 2)}}.serve(b)
	tail, err := r.Tail(nil, 1)
	if err != nil || tail.Waiting || tail.Next != 3 || tail.End != 3 {
		t.Errorf("got %+v, %v; want nothing waiting, and 3 the next", tail, err)
	}
}

// emptiedBatch is a batch without records for the offsets from first to last.
func emptiedBatch(first, last int64) []byte {
	batch := kmsg.RecordBatch{
		FirstOffset: first, PartitionLeaderEpoch: -1, Magic: 2, LastOffsetDelta: int32(last - first),
		ProducerID: 1, ProducerEpoch: 0, FirstSequence: 0,
	}
	raw := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

// fetchResponse is what the broker responds with: batches, and the transactions among them that were aborted.
type fetchResponse struct {
	end     int64
	batches [][]byte
	aborted []kmsg.FetchResponseTopicPartitionAbortedTransaction
}

func (a fetchResponse) serve(b *brokertest.Broker) {
	b.Kfake().ControlKey(int16(kmsg.ListOffsets), func(request kmsg.Request) (kmsg.Response, error, bool) {
		b.Kfake().KeepControl()
		list := request.(*kmsg.ListOffsetsRequest)
		response := list.ResponseKind().(*kmsg.ListOffsetsResponse)
		topic, partition := kmsg.NewListOffsetsResponseTopic(), kmsg.NewListOffsetsResponseTopicPartition()
		topic.Topic, partition.Offset = list.Topics[0].Topic, a.end
		topic.Partitions = append(topic.Partitions, partition)
		response.Topics = append(response.Topics, topic)
		return response, nil, true
	})
	b.Kfake().ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		b.Kfake().KeepControl()
		fetch := request.(*kmsg.FetchRequest)
		response := fetch.ResponseKind().(*kmsg.FetchResponse)
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic = fetch.Topics[0].Topic
		partition := kmsg.NewFetchResponseTopicPartition()
		partition.HighWatermark, partition.LastStableOffset = a.end, a.end
		partition.RecordBatches = bytes.Join(a.batches, nil)
		partition.AbortedTransactions = a.aborted
		topic.Partitions = append(topic.Partitions, partition)
		response.Topics = append(response.Topics, topic)
		return response, nil, true
	})
}

const (
	transactional = 1 << 4
	control       = 1 << 5
)

// batch holds a record at each of the offsets.
func batch(attributes int16, producer, first, last int64, at ...int64) []byte {
	b := kmsg.RecordBatch{
		FirstOffset: first, PartitionLeaderEpoch: -1, Magic: 2, LastOffsetDelta: int32(last - first),
		Attributes: attributes, ProducerID: producer, NumRecords: int32(len(at)),
	}
	for _, offset := range at {
		r := kmsg.Record{OffsetDelta: int32(offset - first), Key: []byte("key"), Value: []byte("value")}
		raw := r.AppendTo(nil)
		r.Length = int32(len(raw) - 1) // behind the length itself, which is one byte
		b.Records = append(b.Records, r.AppendTo(nil)...)
	}
	return sealed(b)
}

// marker ends a producer's transaction.
func marker(producer, offset int64, commit int16) []byte {
	b := kmsg.RecordBatch{
		FirstOffset: offset, PartitionLeaderEpoch: -1, Magic: 2, Attributes: transactional | control,
		ProducerID: producer, NumRecords: 1,
	}
	key := kmsg.ControlRecordKey{Type: kmsg.ControlRecordKeyType(commit)}
	value := kmsg.EndTxnMarker{}
	r := kmsg.Record{Key: key.AppendTo(nil), Value: value.AppendTo(nil)}
	r.Length = int32(len(r.AppendTo(nil)) - 1)
	b.Records = r.AppendTo(nil)
	return sealed(b)
}

func sealed(b kmsg.RecordBatch) []byte {
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

// The offsets that hold nothing for a consumer are passed, and no record is.
func TestTailPassesNoRecord(t *testing.T) {
	abort := func(producer, first int64) kmsg.FetchResponseTopicPartitionAbortedTransaction {
		a := kmsg.NewFetchResponseTopicPartitionAbortedTransaction()
		a.ProducerID, a.FirstOffset = producer, first
		return a
	}
	for name, c := range map[string]struct {
		response    fetchResponse
		uncommitted bool
		next        int64
		waiting     bool
	}{
		"a marker":                {fetchResponse{end: 3, batches: [][]byte{marker(1, 2, 1)}}, false, 3, false},
		"a marker, then a record": {fetchResponse{end: 4, batches: [][]byte{marker(1, 2, 1), batch(0, -1, 3, 3, 3)}}, false, 3, true},
		"an aborted transaction": {fetchResponse{end: 5,
			batches: [][]byte{batch(transactional, 1, 2, 3, 2, 3), marker(1, 4, 0)},
			aborted: []kmsg.FetchResponseTopicPartitionAbortedTransaction{abort(1, 2)}}, false, 5, false},
		"an aborted transaction that began before": {fetchResponse{end: 4,
			batches: [][]byte{batch(transactional, 1, 2, 2, 2), marker(1, 3, 0)},
			aborted: []kmsg.FetchResponseTopicPartitionAbortedTransaction{abort(1, 0)}}, false, 4, false},
		"read uncommitted gets aborted records": {fetchResponse{end: 5,
			batches: [][]byte{batch(transactional, 1, 2, 3, 2, 3), marker(1, 4, 0)},
			aborted: []kmsg.FetchResponseTopicPartitionAbortedTransaction{abort(1, 2)}}, true, 2, true},
		"the next transaction of the same producer": {fetchResponse{end: 6,
			batches: [][]byte{batch(transactional, 1, 2, 2, 2), marker(1, 3, 0), batch(transactional, 1, 4, 4, 4), marker(1, 5, 1)},
			aborted: []kmsg.FetchResponseTopicPartitionAbortedTransaction{abort(1, 2)}}, false, 4, true},
		"another producer's among it": {fetchResponse{end: 5,
			batches: [][]byte{batch(transactional, 1, 2, 2, 2), batch(transactional, 2, 3, 3, 3), marker(1, 4, 0)},
			aborted: []kmsg.FetchResponseTopicPartitionAbortedTransaction{abort(1, 2)}}, false, 3, true},
		"not transactional, of the same producer": {fetchResponse{end: 4,
			batches: [][]byte{batch(0, 1, 2, 2, 2), marker(1, 3, 0)},
			aborted: []kmsg.FetchResponseTopicPartitionAbortedTransaction{abort(1, 0)}}, false, 2, true},
		"a marker, then half a batch": {fetchResponse{end: 9,
			batches: [][]byte{marker(1, 2, 1), batch(0, -1, 3, 8, 3, 8)[:70]}}, false, 3, false},
		"an emptied batch, then half a batch": {fetchResponse{end: 9,
			batches: [][]byte{batch(0, 1, 2, 2), batch(0, -1, 3, 8, 3, 8)[:70]}}, false, 2, true},
		"a batch without its last record": {fetchResponse{end: 4, batches: [][]byte{batch(0, -1, 0, 3, 0, 1)}}, false, 4, false},
		"a batch without its first one":   {fetchResponse{end: 4, batches: [][]byte{batch(0, -1, 0, 3, 0, 3)}}, false, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := brokertest.NewFake(t)
			r := reader(t, b, "a")
			if !c.uncommitted {
				r.client.Config().Consumer.IsolationLevel = sarama.ReadCommitted
			}
			c.response.serve(b)
			tail, err := r.Tail(nil, 2)
			if err != nil || tail.Next != c.next || tail.Waiting != c.waiting || tail.End != c.response.end {
				t.Errorf("got %+v, %v; want next %d, waiting %v", tail, err, c.next, c.waiting)
			}
		})
	}
}
