// Package kafkactx makes watermill-kafka's context getters work on messages that
// watermill-kafka did not create.
//
// The keys of those getters are unexported. But a getter passes its key to Context.Value,
// so a context that records what it is asked for learns each key from the getter itself.
package kafkactx

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
)

// Record has the values that the getters return.
type Record interface {
	Partition() int32
	Offset() int64
	Timestamp() time.Time
	Key() []byte
}

var (
	partitionKey = KeyOf(kafka.MessagePartitionFromCtx)
	offsetKey    = KeyOf(kafka.MessagePartitionOffsetFromCtx)
	timestampKey = KeyOf(kafka.MessageTimestampFromCtx)
	keyKey       = KeyOf(kafka.MessageKeyFromCtx)
)

// KeyOf returns the key that a getter looks up.
func KeyOf[V any](getter func(context.Context) (V, bool)) any {
	p := &probe{Context: context.Background()}
	getter(p)
	return p.asked
}

type probe struct {
	context.Context
	asked any
}

func (p *probe) Value(key any) any {
	p.asked = key
	return nil
}

// Value returns a record's value for the key of a getter. ok is false for any other key.
func Value(r Record, key any) (value any, ok bool) {
	switch key {
	case partitionKey:
		return r.Partition(), true
	case offsetKey:
		return r.Offset(), true
	case timestampKey:
		return r.Timestamp(), true
	case keyKey:
		return r.Key(), true
	}
	return nil, false
}
