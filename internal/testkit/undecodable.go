package testkit

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// ProduceUndecodable writes a batch of one record that says it is compressed, and is not.
func ProduceUndecodable(t testing.TB, broker *brokertest.Broker, topic string, partition int32) {
	t.Helper()
	const zstd = 4
	batch := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: zstd, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1,
		NumRecords: 1, Records: []byte("not compressed"),
	}
	raw := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	client, err := kgo.NewClient(kgo.SeedBrokers(broker.Addrs()...), kgo.MaxVersions(kversion.V2_8_0()))
	Check(t, err)
	defer client.Close()
	request := kmsg.NewPtrProduceRequest()
	request.Acks, request.TimeoutMillis = -1, 10_000
	to, at := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
	to.Topic, at.Partition, at.Records = topic, partition, raw
	to.Partitions = append(to.Partitions, at)
	request.Topics = append(request.Topics, to)
	response, err := request.RequestWith(context.Background(), client)
	Check(t, err)
	if code := response.Topics[0].Partitions[0].ErrorCode; code != 0 {
		t.Fatal("produce: error", code)
	}
}
