package letters

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
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
			text, err := m.metadata("dlq", 1)
			testkit.Check(t, err)
			again, err := parseMarks(ledger.Place{Topic: "dlq", Partition: 1, Offset: m.floor}, text)
			testkit.Check(t, err)
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

// How many letters may be left out, at the worst: half of them, at random.
func TestMarksCapacity(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	m := &marks{}
	grow := func(to int64) {
		for o := int64(1) + max(0, m.last()); o < to; o++ {
			if rng.IntN(2) == 0 {
				m.add(span{o, o + 1})
			}
		}
	}
	grow(23_000)
	text, err := m.metadata("dlq", 1)
	testkit.Check(t, err)
	again, err := parseMarks(ledger.Place{Topic: "dlq", Partition: 1, Offset: m.floor}, text)
	if err != nil || !slices.Equal(again.spans, m.spans) {
		t.Errorf("it comes back otherwise: %v", err)
	}
	grow(26_000)
	if _, err := m.metadata("dlq", 1); !errors.Is(err, errMarksFull) {
		t.Errorf("half of 26,000 letters: %v", err)
	}
	far := &marks{}
	for o := int64(1_000); o < 1_000_000; o += 2_000 {
		far.add(span{o, o + 3})
	}
	if text, err := far.metadata("dlq", 1); err != nil {
		t.Errorf("500 far apart: %d bytes, %v", len(text), err)
	}
}

func (m *marks) last() int64 {
	if len(m.spans) == 0 {
		return m.floor
	}
	return m.spans[len(m.spans)-1].to
}

// What something else stored is not taken for marks.
func TestMarksOfOthers(t *testing.T) {
	t.Parallel()
	at := ledger.Place{Topic: "dlq", Partition: 1, Offset: 5}
	subscribers, _ := ledger.Encode(at, &ledger.Ledger{}, ledger.DefaultRoom)
	elsewhere, err := (&marks{floor: 6}).metadata("dlq", 1)
	testkit.Check(t, err)
	for _, text := range []string{"x", subscribers, elsewhere} {
		if m, err := parseMarks(at, text); !errors.Is(err, errNotMetadata) {
			t.Errorf("%q is %+v, %v", text, m, err)
		}
	}
	if m, err := parseMarks(at, ""); err != nil || m.floor != 5 || len(m.spans) > 0 {
		t.Errorf("an offset without metadata is %+v, %v", m, err)
	}
}
