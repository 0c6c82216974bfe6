package ackpolicyotel

import (
	"maps"
	"sync"

	"go.opentelemetry.io/otel/trace"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// record identifies a record of a subscription.
type record struct {
	group, topic string
	partition    int32
	offset       int64
}

func recordOf(at ackpolicy.RecordRef) record {
	return record{at.Group, at.Topic, at.Partition, at.Offset}
}

// handed is the latest delivery of a record.
type handed struct {
	attempt int
	span    trace.SpanContext
}

// mostSpans is how many records are remembered. Of more, any are forgotten: the next spans
// of theirs are not linked.
const mostSpans = 1 << 16

// spans remembers the deliveries of records that are not done with.
type spans struct {
	mu sync.Mutex
	of map[record]handed
}

// begin remembers a delivery, and returns the one before.
func (s *spans) begin(r record, h handed) (previous trace.SpanContext) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before, ok := s.of[r]; ok && before.attempt < h.attempt {
		previous = before.span
	}
	if len(s.of) >= mostSpans {
		for any := range s.of {
			delete(s.of, any)
			break
		}
	}
	s.of[r] = h
	return previous
}

// find returns the span of a record's latest delivery.
func (s *spans) find(r record) (handed, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, ok := s.of[r]
	return h, ok
}

func (s *spans) forget(r record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, r)
}

// release forgets the records of a partition.
func (s *spans) release(at ackpolicy.PartitionRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.of, func(r record, _ handed) bool {
		return r.group == at.Group && r.topic == at.Topic && r.partition == at.Partition
	})
}
