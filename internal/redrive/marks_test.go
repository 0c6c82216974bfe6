package redrive

import (
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// Against a model: a set of offsets.
func TestMarksModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m, model := &marks{floor: 10}, map[int64]bool{}
		for o := range int64(10) {
			model[o] = true
		}
		for range 60 {
			from := rng.Int64N(80)
			if rng.IntN(4) == 0 {
				m.remove(from)
				delete(model, from)
			} else {
				s := span{from, from + rng.Int64N(6)}
				m.add(s)
				for o := s.from; o < s.to; o++ {
					model[o] = true
				}
			}
			wantMarks(t, m, model)
			text, err := m.metadata()
			check(t, err)
			again, err := parseMarks(m.floor, text)
			check(t, err)
			if again.floor != m.floor || !slices.Equal(again.spans, m.spans) {
				t.Fatalf("seed %d: %+v comes back as %+v from %q", seed, m, again, text)
			}
		}
	}
}

func wantMarks(t *testing.T, m *marks, model map[int64]bool) {
	t.Helper()
	for o := range int64(90) {
		if m.has(o) != model[o] {
			t.Fatalf("%d: got %v, want %v in %+v, %v", o, m.has(o), model[o], m, slices.Sorted(maps.Keys(model)))
		}
	}
	if m.has(m.floor) {
		t.Fatalf("the floor is not the first open offset: %+v", m)
	}
	last := m.floor
	for _, s := range m.spans {
		if s.from <= last || s.to <= s.from {
			t.Fatalf("spans overlap, touch or are empty: %+v", m)
		}
		last = s.to
	}
}

// How many letters may be left out, at the worst.
func TestMarksCapacity(t *testing.T) {
	t.Parallel()
	m := &marks{}
	for o := int64(1); o < 24_400; o += 2 {
		m.add(span{o, o + 1})
	}
	text, err := m.metadata()
	if err != nil || len(text) > maxMetadata {
		t.Errorf("every second one of 24,400 letters: %d bytes, %v", len(text), err)
	}
	again, err := parseMarks(m.floor, text)
	if err != nil || !slices.Equal(again.spans, m.spans) {
		t.Errorf("it comes back otherwise: %v", err)
	}
	for o := int64(24_401); o < 25_000; o += 2 {
		m.add(span{o, o + 1})
	}
	if _, err := m.metadata(); !errors.Is(err, errMarksFull) {
		t.Errorf("every second one of 25,000 letters: %v", err)
	}
	far := &marks{}
	for o := int64(1_000); o < 1_000_000; o += 2_000 {
		far.add(span{o, o + 3})
	}
	if text, err := far.metadata(); err != nil {
		t.Errorf("500 far apart: %d bytes, %v", len(text), err)
	}
}

// What something else stored is not taken for marks.
func TestMarksOfOthers(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"x", "redrive2", metadataNone + ":", metadataSpans + "!", metadataSpans + "AA", metadataSpans + "BQ", metadataBitmap + "!"} {
		if m, err := parseMarks(5, text); !errors.Is(err, errNotMetadata) {
			t.Errorf("%q is %+v, %v", text, m, err)
		}
	}
}

func FuzzParseMarks(f *testing.F) {
	m := &marks{floor: 5, spans: []span{{7, 9}, {12, 40}, {1 << 40, 1<<40 + 1}}}
	text, err := m.metadata()
	check(f, err)
	f.Add(int64(5), text)
	f.Add(int64(math.MaxInt64), text)
	f.Add(int64(3), metadataBitmap+"/w")
	f.Add(int64(3), metadataSpans)
	f.Fuzz(func(t *testing.T, floor int64, text string) {
		if floor < 0 {
			return // Kafka stores none
		}
		m, err := parseMarks(floor, text)
		if err != nil {
			return
		}
		last := m.floor
		for _, s := range m.spans {
			if s.from <= last || s.to <= s.from {
				t.Fatalf("%q: %+v", text, m)
			}
			last = s.to
		}
		m.add(span{floor, floor + min(10, math.MaxInt64-floor)})
		m.remove(floor)
	})
}
