package reread

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Compaction keeps a producer's last batch, also where it took all records out of it: nobody waits for those.
func TestEmptiedBatchIsNotWaitedFor(t *testing.T) {
	b := brokertest.NewFake(t)
	r := reader(t, b, "a", "b", "c")
	b.Kfake().ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		b.Kfake().KeepControl()
		fetch := request.(*kmsg.FetchRequest)
		response := fetch.ResponseKind().(*kmsg.FetchResponse)
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic = fetch.Topics[0].Topic
		partition := kmsg.NewFetchResponseTopicPartition()
		partition.HighWatermark, partition.LastStableOffset = 3, 3
		partition.RecordBatches = emptiedBatch(1, 2)
		topic.Partitions = append(topic.Partitions, partition)
		response.Topics = append(response.Topics, topic)
		return response, nil, true
	})
	tail, err := r.Tail(1)
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
