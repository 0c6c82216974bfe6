package testkit

import (
	"fmt"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// NewTopic makes a topic whose partition 0 holds the records.
func NewTopic(t testing.TB, partitions int32, records ...brokertest.Record) string {
	t.Helper()
	topic := brokertest.Topic(t)
	Check(t, brokertest.CreateTopic(Shared.Addrs(), topic, partitions))
	Produce(t, topic, 0, records...)
	return topic
}

// FilledTopic is NewTopic with n numbered records in each partition.
func FilledTopic(t testing.TB, partitions int32, n int) string {
	t.Helper()
	topic := NewTopic(t, partitions)
	for p := range partitions {
		Produce(t, topic, p, Numbered(n)...)
	}
	return topic
}

// Produce writes records to the shared broker.
func Produce(t testing.TB, topic string, partition int32, records ...brokertest.Record) {
	t.Helper()
	_, err := brokertest.Produce(Shared.Addrs(), topic, partition, records...)
	Check(t, err)
}

// Numbered makes records without keys: 0, 1, …
func Numbered(n int) []brokertest.Record {
	records := make([]brokertest.Record, n)
	for i := range records {
		records[i].Value = fmt.Append(nil, i)
	}
	return records
}

// Keyed makes one record per key, in order.
func Keyed(keys ...string) []brokertest.Record {
	records := make([]brokertest.Record, len(keys))
	for i, key := range keys {
		records[i] = brokertest.KeyValue(key, fmt.Sprint(i))
	}
	return records
}
