package redrive

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
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

// Committed metadata is text of at most this many bytes: the default of a
// broker's offset.metadata.max.bytes.
const maxMetadata = 4096

// What metadata begins with. The spans follow as base64, in the shorter of two
// forms: distances and lengths, or a bit for each offset from the floor on.
const (
	metadataNone   = "redrive1"
	metadataSpans  = metadataNone + ":s:"
	metadataBitmap = metadataNone + ":b:"
)

var (
	errMarksFull = errors.New("too many letters were left out between those that were sent or skipped: Kafka stores no more marks. " +
		"Skip the oldest ones that are open, or send them elsewhere with -to")
	errNotMetadata = errors.New("the offset was stored by something else")
)

// metadata encodes the spans.
func (m *marks) metadata() (string, error) {
	if len(m.spans) == 0 {
		return metadataNone, nil
	}
	var lengths []byte
	at := m.floor
	for _, s := range m.spans {
		lengths = binary.AppendUvarint(lengths, uint64(s.from-at))
		lengths = binary.AppendUvarint(lengths, uint64(s.to-s.from))
		at = s.to
	}
	text := metadataSpans + base64.RawStdEncoding.EncodeToString(lengths)
	if size := (at-m.floor)/8 + 1; size < int64(len(lengths)) {
		bits := make([]byte, size)
		for _, s := range m.spans {
			for o := s.from - m.floor; o < s.to-m.floor; o++ {
				bits[o/8] |= 1 << (o % 8)
			}
		}
		text = metadataBitmap + base64.RawStdEncoding.EncodeToString(bits)
	}
	if len(text) > maxMetadata {
		return "", errMarksFull
	}
	return text, nil
}

// parseMarks reads what metadata wrote. Without metadata there is but the offset:
// kafka-consumer-groups.sh stores it so when it resets one.
func parseMarks(floor int64, metadata string) (*marks, error) {
	m := &marks{floor: floor}
	if metadata == "" || metadata == metadataNone {
		return m, nil
	}
	lengths, isSpans := strings.CutPrefix(metadata, metadataSpans)
	bits, isBitmap := strings.CutPrefix(metadata, metadataBitmap)
	switch {
	case isSpans:
		return m, m.parseSpans(lengths)
	case isBitmap:
		return m, m.parseBitmap(bits)
	}
	return nil, errNotMetadata
}

func (m *marks) parseSpans(text string) error {
	data, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return errNotMetadata
	}
	next := func() (int64, bool) {
		v, n := binary.Uvarint(data)
		if n <= 0 || v == 0 || v > math.MaxInt64 {
			return 0, false
		}
		data = data[n:]
		return int64(v), true
	}
	for at := m.floor; len(data) > 0; {
		gap, ok := next()
		length, ok2 := next()
		if !ok || !ok2 || gap > math.MaxInt64-at || length > math.MaxInt64-at-gap {
			return errNotMetadata
		}
		s := span{at + gap, at + gap + length}
		m.spans, at = append(m.spans, s), s.to
	}
	return nil
}

func (m *marks) parseBitmap(text string) error {
	bits, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil || m.floor > math.MaxInt64-int64(len(bits))*8 {
		return errNotMetadata
	}
	base := m.floor
	for i := range int64(len(bits)) * 8 {
		if bits[i/8]&(1<<(i%8)) != 0 {
			m.add(span{base + i, base + i + 1})
		}
	}
	return nil
}
