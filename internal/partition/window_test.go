package partition

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// handedOut makes a partition with n records, all with their handlers, that are not in order
// of any key.
func handedOut(t testing.TB, n int) (*Partition[int, any], []*Delivery[int, any]) {
	t.Helper()
	p := New[any](Config[int]{
		Order: Unordered, MaxInFlight: n, Committed: true, Fingerprint: func(r int) uint32 { return printOf(int64(r), 0) },
	})
	all := make([]*Delivery[int, any], n)
	for i := range all {
		if _, err := p.Push(int64(2*i), 2*i, 1); err != nil { // with gaps
			t.Fatal(err)
		}
		all[i] = &Delivery[int, any]{}
		if _, ok := p.Take(all[i]); !ok {
			t.Fatal("nothing to take")
		}
	}
	return p, all
}

// marksOf returns the offsets that blocks mark, and fails if a sum is not that of its records.
func marksOf(t *testing.T, blocks []ledger.Block, last int64) (marked []int64) {
	t.Helper()
	sums := make([]uint32, len(blocks))
	for offset := int64(0); offset <= last; offset += 2 {
		if b, ok := ledger.Marked(blocks, offset); ok {
			marked = append(marked, offset)
			sums[b] += printOf(offset, 0)
		}
	}
	for i, b := range blocks {
		if b.Sum != sums[i] {
			t.Errorf("block %d of %d has the sum %x, want %x", i, len(blocks), b.Sum, sums[i])
		}
	}
	return marked
}

// What is settled behind an open record gives its memory up, and the marks stay.
func TestSettledChunksAreFreed(t *testing.T) {
	const n = 10_000
	p, all := handedOut(t, n)
	rest := slices.Clone(all[1:])
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	var want []int64
	for i, d := range rest {
		p.Settle(d, Verdict{Status: Acked}, 0)
		want = append(want, d.Offset())
		if i%1999 == 0 {
			s := p.Snapshot()
			slices.Sort(want)
			if got := marksOf(t, s.Blocks, 2*n); !slices.Equal(got, want) || s.Offset != 0 {
				t.Fatalf("%d marks above %d, want %d", len(got), s.Offset, len(want))
			}
		}
	}
	held := 0
	for i := range p.chunks {
		if p.chunks[i].entries != nil {
			held++
		}
	}
	if held > 2 {
		t.Errorf("%d chunks are held for one record that is open", held)
	}
	s := p.Snapshot()
	runs := 0
	for _, b := range s.Blocks {
		runs += len(b.Runs)
	}
	if got := marksOf(t, s.Blocks, 2*n); len(got) != n-1 || runs != len(s.Blocks) {
		t.Errorf("%d marks in %d runs and %d blocks, want %d", len(got), runs, len(s.Blocks), n-1)
	}
	p.Settle(all[0], Verdict{Status: Acked}, 0)
	if m := p.Mark(); m.Offset != 2*n-1 || m.Seq != n {
		t.Errorf("mark %+v after the last record", m)
	}
	if s := p.Snapshot(); len(s.Blocks) > 0 {
		t.Errorf("marks below the watermark: %+v", s.Blocks)
	}
}

// A snapshot that is made while records settle says of none that it is settled which is not.
func TestSnapshotBesideSettlements(t *testing.T) {
	const n = 20_000
	p, all := handedOut(t, n)
	left := map[int64]bool{}
	for i := 0; i < n; i += 97 {
		left[all[i].Offset()] = i > n/2 // those of the first half are settled late
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pass := range 2 {
			for _, d := range all {
				if late, open := left[d.Offset()]; !open == (pass == 0) && !late {
					p.Settle(d, Verdict{Status: Acked}, 0)
				}
			}
		}
	}()
	for more := true; more; {
		select {
		case <-done:
			more = false
		default:
		}
		s := p.Snapshot()
		for _, offset := range marksOf(t, s.Blocks, 2*n) {
			if left[offset] {
				t.Fatalf("record %d is marked", offset)
			}
		}
	}
	s := p.Snapshot()
	if s.Keep(make([]bool, len(s.Blocks))); s.Offset == 0 || s.Left() != len(marksOf(t, s.Blocks, 2*n)) {
		t.Errorf("%+v, %d left", s.Mark, s.Left())
	}
}

func BenchmarkSnapshot(b *testing.B) {
	for name, every := range map[string]int{"1 open": 1 << 30, "1 of 100 open": 100, "every second open": 2} {
		b.Run(name, func(b *testing.B) {
			p, all := handedOut(b, 100_000)
			for i, d := range all {
				if i%every != 0 {
					p.Settle(d, Verdict{Status: Acked}, 0)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				p.Snapshot()
			}
		})
	}
}
