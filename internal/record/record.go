// Package record copies and measures Kafka records.
package record

import (
	"bytes"

	"github.com/IBM/sarama"
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

// Detached returns a copy of a record outside of the fetch that it came with, which
// sarama's slices would keep in memory as a whole.
func Detached(r *sarama.ConsumerMessage) *sarama.ConsumerMessage { return copied(r, bytes.Clone) }

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

// What a record and a header take beside their bytes: sarama's structs, as the heap
// rounds them. For small records it is the greater part.
const (
	messageSize = 160
	headerSize  = 56
)

// Size returns how many bytes of memory a record takes.
func Size(r *sarama.ConsumerMessage) int {
	n := messageSize + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += headerSize + len(h.Key) + len(h.Value)
	}
	return n
}
