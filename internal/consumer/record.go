package consumer

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

// Copies makes what the application is given of a record. sarama's slices lie in the
// fetch that brought them, one behind the other and with room to append: a handler that
// changed them would change the record for its next delivery and its letter, and the
// records behind it. The copies of small records share memory. One goroutine uses it.
type Copies struct{ free []byte }

// A copy above mostShared bytes has memory of its own. A message that the application
// keeps keeps a chunk.
const (
	chunk      = 2048
	mostShared = chunk / 8
)

// Bytes returns a copy of b, nil for nil.
func (c *Copies) Bytes(b []byte) []byte {
	n := len(b)
	if n == 0 || n > mostShared {
		return bytes.Clone(b)
	}
	if n > len(c.free) {
		c.free = make([]byte, chunk)
	}
	own := c.free[:n:n]
	c.free = c.free[n:]
	copy(own, b)
	return own
}

// Record returns a copy of a record with all that it points to.
func (c *Copies) Record(r *sarama.ConsumerMessage) *sarama.ConsumerMessage {
	return copied(r, c.Bytes)
}

// detached copies a record out of the fetch that it came with, which sarama's slices
// would keep in memory as a whole.
func detached(r *sarama.ConsumerMessage) *sarama.ConsumerMessage { return copied(r, bytes.Clone) }

func copied(r *sarama.ConsumerMessage, clone func([]byte) []byte) *sarama.ConsumerMessage {
	own := *r
	own.Key, own.Value = clone(r.Key), clone(r.Value)
	if n := len(r.Headers); n > 0 {
		headers := make([]sarama.RecordHeader, n)
		own.Headers = make([]*sarama.RecordHeader, n)
		for i, h := range r.Headers {
			headers[i] = sarama.RecordHeader{Key: clone(h.Key), Value: clone(h.Value)}
			own.Headers[i] = &headers[i]
		}
	}
	return &own
}

// Topic, Partition, Key and Timestamp are the record's, at any time.
func (d *Delivery) Topic() string        { return d.claim.topic }
func (d *Delivery) Partition() int32     { return d.claim.partition }
func (d *Delivery) Key() []byte          { return d.key }
func (d *Delivery) Timestamp() time.Time { return d.timestamp.time() }

// describe keeps what the delivery tells of its record for as long as the application
// keeps the delivery.
func (d *Delivery) describe(r *sarama.ConsumerMessage, c *Copies) {
	d.key, d.timestamp = c.Bytes(r.Key), stampOf(r.Timestamp)
}

// stamp is a Kafka timestamp, in milliseconds: a third of a time.Time. sarama's zero time,
// where the producer wrote none, stays one.
type stamp int64

func stampOf(t time.Time) stamp { return stamp(t.UnixMilli()) }

func (s stamp) time() time.Time {
	t := time.UnixMilli(int64(s))
	if t.IsZero() {
		return time.Time{}
	}
	return t
}

// Original returns a copy of the record as it is in Kafka. With traced it comes from
// the broker, since a tracer writes into the headers of the one in memory, and so does
// one that memory holds no longer. The error may be reread.ErrGone.
func (d *Delivery) Original(ctx context.Context, traced bool) (*sarama.ConsumerMessage, error) {
	held, whole := d.claim.part.Record(&d.Delivery)
	if whole && !traced {
		return detached(held), nil
	}
	record, err := d.claim.reader.Read(ctx.Done(), d.Offset())
	switch {
	case err == nil:
		return detached(record), nil
	case whole && errors.Is(err, reread.ErrGone):
		return detached(held), nil
	}
	return nil, err
}
