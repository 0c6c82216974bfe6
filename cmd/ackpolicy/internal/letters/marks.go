package letters

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// marks is which letters of a partition are done, that is sent or skipped: all
// below floor, and the spans above it. Floor is what is committed; the spans are
// the metadata that goes with it.
type marks struct {
	floor int64
	spans []span // above floor, in order, neither overlapping nor touching
}

// span is the offsets from (inclusive) to (exclusive).
type span struct{ from, to int64 }

func (m *marks) has(offset int64) bool {
	if offset < m.floor {
		return true
	}
	_, found := slices.BinarySearchFunc(m.spans, offset, func(s span, o int64) int {
		switch {
		case s.to <= o:
			return -1
		case s.from > o:
			return 1
		}
		return 0
	})
	return found
}

// add marks the offsets of a span as done.
func (m *marks) add(s span) {
	if s.from >= s.to || s.to <= m.floor {
		return
	}
	i := 0
	for i < len(m.spans) && m.spans[i].to < s.from {
		i++
	}
	j := i
	for j < len(m.spans) && m.spans[j].from <= s.to {
		s = span{min(s.from, m.spans[j].from), max(s.to, m.spans[j].to)}
		j++
	}
	m.spans = slices.Replace(m.spans, i, j, s)
	if m.spans[0].from <= m.floor {
		m.floor = max(m.floor, m.spans[0].to)
		m.spans = m.spans[1:]
	}
}

// remove makes one offset open again.
func (m *marks) remove(offset int64) {
	if !m.has(offset) {
		return
	}
	all := append([]span{{math.MinInt64, m.floor}}, m.spans...)
	i := slices.IndexFunc(all, func(s span) bool { return offset < s.to })
	before, after := span{all[i].from, offset}, span{offset + 1, all[i].to}
	all = slices.Replace(all, i, i+1, before, after)
	m.floor = all[0].to
	m.spans = slices.DeleteFunc(all[1:], func(s span) bool { return s.from >= s.to })
}

func (m *marks) clone() *marks { return &marks{m.floor, slices.Clone(m.spans)} }

var (
	errMarksFull = errors.New("too many letters were left out between those that were sent or skipped: Kafka stores no more marks. " +
		"Skip the oldest ones that are open, or send them elsewhere with --to")
	errNotMetadata = errors.New("the offset was stored by something else")
)

// metadata is the ledger of the spans: a run each, in one block without a sum, since
// a redrive does not skip what it has not read.
func (m *marks) metadata(topic string, partition int32) (string, error) {
	l := &ledger.Ledger{Kind: ledger.Redrive}
	if len(m.spans) > 0 {
		b := ledger.Block{}
		for _, s := range m.spans {
			b.Runs = append(b.Runs, ledger.Run{From: s.from, To: s.to})
		}
		l.Blocks = []ledger.Block{b}
	}
	text, kept := ledger.Encode(ledger.Place{Topic: topic, Partition: partition, Offset: m.floor}, l, ledger.DefaultRoom)
	if !kept.Whole(l) {
		return "", errMarksFull
	}
	return text, nil
}

// parseMarks reads what metadata wrote. Without metadata there is but the offset:
// kafka-consumer-groups.sh stores it so when it resets one.
func parseMarks(at ledger.Place, metadata string) (*marks, error) {
	m := &marks{floor: at.Offset}
	l, err := ledger.Decode(at, metadata)
	switch {
	case errors.Is(err, ledger.ErrNone):
		return m, nil
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNotMetadata, err)
	case l.Kind != ledger.Redrive:
		return nil, fmt.Errorf("%w: a subscriber of this library", errNotMetadata)
	}
	for _, b := range l.Blocks {
		for _, r := range b.Runs {
			m.add(span{r.From, r.To})
		}
	}
	return m, nil
}

// marksOf returns what is done of a partition that has these bounds.
func marksOf(topic string, partition int32, s kafka.Stored, log span) (*marks, error) {
	m, err := parseMarks(ledger.Place{Topic: topic, Partition: partition, Offset: s.Offset}, s.Metadata)
	if err != nil {
		return nil, err
	}
	last := m.floor
	if n := len(m.spans); n > 0 {
		last = m.spans[n-1].to
	}
	if last > log.to {
		return nil, fmt.Errorf("letters up to offset %d are marked as done, but the topic ends at %d: was it created again?", last-1, log.to)
	}
	m.add(span{m.floor, log.from}) // what retention took
	return m, nil
}
