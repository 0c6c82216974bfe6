package consumer

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

// detached copies a record out of the fetch it came with, which sarama's slices
// would keep in memory as a whole.
func detached(r *sarama.ConsumerMessage) *sarama.ConsumerMessage {
	c := stripped(r)
	c.Value = bytes.Clone(r.Value)
	c.Headers = make([]*sarama.RecordHeader, len(r.Headers))
	for i, h := range r.Headers {
		c.Headers[i] = &sarama.RecordHeader{Key: bytes.Clone(h.Key), Value: bytes.Clone(h.Value)}
	}
	return c
}

// stripped is what a delivery still tells of a record that was pushed out of memory.
func stripped(r *sarama.ConsumerMessage) *sarama.ConsumerMessage {
	return &sarama.ConsumerMessage{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: bytes.Clone(r.Key),
		Timestamp: r.Timestamp, BlockTimestamp: r.BlockTimestamp,
	}
}

// Topic, Partition, Key and Timestamp are the record's, at any time.
func (d *Delivery) Topic() string    { return d.claim.topic }
func (d *Delivery) Partition() int32 { return d.claim.partition }
func (d *Delivery) Key() []byte {
	r, _ := d.claim.part.Record(&d.Delivery)
	return r.Key
}
func (d *Delivery) Timestamp() time.Time {
	r, _ := d.claim.part.Record(&d.Delivery)
	return r.Timestamp
}

// Whole answers the record with all its bytes, from the broker where memory holds
// them no longer. original asks the broker in any case: a tracer writes into the
// headers of the one that was consumed. The error may be reread.ErrGone.
func (d *Delivery) Whole(ctx context.Context, original bool) (*sarama.ConsumerMessage, error) {
	held, whole := d.claim.part.Record(&d.Delivery)
	if whole && !original {
		return held, nil
	}
	record, err := d.claim.reader.Read(ctx.Done(), d.Offset())
	if whole && errors.Is(err, reread.ErrGone) {
		return held, nil
	}
	return record, err
}
