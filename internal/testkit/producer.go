package testkit

import (
	"fmt"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Producer is a brokertest.Producer of a test.
type Producer struct{ of *brokertest.Producer }

// StartProducer produces at a rate per second, over a number of keys per partition, until Finish or the test's end.
func StartProducer(t testing.TB, topic string, partitions, rate int, keys int64) *Producer {
	t.Helper()
	return StartKeyedProducer(t, topic, partitions, rate, func(partition int32, offset int64) string { return KeyOf(partition, offset, keys) })
}

// StartKeyedProducer is StartProducer with keys of the test's choice.
func StartKeyedProducer(t testing.TB, topic string, partitions, rate int, key func(partition int32, offset int64) string) *Producer {
	t.Helper()
	of, err := brokertest.StartProducer(Shared.Addrs(), brokertest.Load{Topic: topic, Partitions: partitions, Rate: float64(rate), Key: key})
	Check(t, err)
	t.Cleanup(func() {
		if _, err := of.Finish(); err != nil { // some tests take its broker away
			t.Log("the producer:", err)
		}
	})
	return &Producer{of}
}

// KeyOf names the lane of a record.
func KeyOf(partition int32, offset, keys int64) string {
	return fmt.Sprintf("%d-%d", partition, offset%keys)
}

// Finish stops the producer and returns the partitions' ends.
func (p *Producer) Finish(t testing.TB) []int64 {
	t.Helper()
	ends, err := p.of.Finish()
	Check(t, err)
	return ends
}
