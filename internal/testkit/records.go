package testkit

import (
	"bytes"
	"fmt"
	"testing"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Sized makes records of a size, each with its own key.
func Sized(n, size int) []brokertest.Record {
	records := make([]brokertest.Record, n)
	for i := range records {
		records[i] = brokertest.Record{Key: fmt.Append(nil, "key ", i), Value: bytes.Repeat([]byte{'.'}, size)}
	}
	return records
}

// Bulky makes records of 10 kB over a few keys.
func Bulky(records, keys int) []brokertest.Record {
	all := make([]brokertest.Record, records)
	for i := range all {
		all[i] = brokertest.KeyValue(fmt.Sprint("key-", i%keys), fmt.Sprint(i))
		all[i].Value = append(all[i].Value, bytes.Repeat([]byte{'.'}, 10_000)...)
	}
	return all
}

// HeavyTopic produces more than MaxBufferedBytes allows, over a few keys.
func HeavyTopic(t *testing.T, records, keys int) (topic string, cfg ackpolicy.SubscriberConfig) {
	cfg = Config(brokertest.Group(t), Ordering(ackpolicy.OrderByKey, 16))
	cfg.MaxBufferedBytes = 1 << 20
	return NewTopic(t, 1, Bulky(records, keys)...), cfg
}

// MiB is a mebibyte.
const MiB = 1 << 20

// OwnKeys makes n records with a key each, from a number on.
func OwnKeys(from, n int) []brokertest.Record {
	records := make([]brokertest.Record, n)
	for i := range records {
		records[i] = brokertest.KeyValue(fmt.Sprint("key", from+i), fmt.Sprint(from+i))
	}
	return records
}
