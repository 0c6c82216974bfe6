package partition

import (
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// heir makes a partition of records that are their own offsets, with what an earlier owner left.
func heir(cfg Config[int64]) *Partition[int64, any] {
	cfg.Fingerprint = func(r int64) uint32 { return printOf(r, 0) }
	cfg.Committed = true
	return New[any](cfg)
}

// blockOf is the block of every step-th record from an offset to another.
func blockOf(from, to, step int64) (b ledger.Block) {
	for o := from; o < to; o += step {
		b.Runs = append(b.Runs, ledger.Run{From: o, To: o + 1})
		b.Sum += printOf(o, 0)
	}
	return b
}

func pushes(t *testing.T, p *Partition[int64, any], from, to int64) {
	t.Helper()
	for o := from; o < to; o++ {
		if _, err := p.Push(o, o, 1); err != nil {
			t.Fatal(err)
		}
	}
}

// What lies where no record is any more is not stored again: a ledger begins at its offset.
func TestSkipOverWhatWasLeft(t *testing.T) {
	p := heir(Config[int64]{Start: 100, MaxInFlight: 1, Marks: []ledger.Block{blockOf(101, 103, 1), blockOf(130, 131, 1)}, Open: []Open{{Offset: 100, Attempts: 1}, {Offset: 125, Attempts: 2}}})
	if _, ok := p.Skip(100, 120); !ok {
		t.Fatal("not skipped")
	}
	s := p.Snapshot()
	if len(s.Blocks) != 1 || s.Blocks[0].Runs[0].From != 130 || len(s.Open) != 1 || s.Open[0].Offset != 125 || s.Offset != 120 {
		t.Errorf("%+v", s)
	}
}

// Marks above the records that are handed out do not make room for those.
func TestMaxUncommittedBesideMarks(t *testing.T) {
	const n, bound = 40_000, 1000
	var marks []ledger.Block
	for from := int64(0); from < n; from += n / 32 {
		marks = append(marks, blockOf(from+1, from+n/32, 2))
	}
	p := heir(Config[int64]{Order: Unordered, MaxInFlight: n, MaxUncommitted: bound, Marks: marks})
	pushes(t, p, 0, n)
	taken := 0
	for ; ; taken++ {
		if _, ok := p.Take(&Delivery[int64, any]{}); !ok {
			break
		}
	}
	if taken != bound {
		t.Errorf("%d records were handed out, want %d", taken, bound)
	}
	p.Committed(p.Snapshot(), false) // with nothing kept
}

// A record is handed out alone that was in flight when an earlier owner died, and how often is stored with it; nothing is
// said of a delivery that was not named.
func TestSuspects(t *testing.T) {
	p := heir(Config[int64]{
		Order: Unordered, MaxInFlight: 16, Careful: 8,
		Open: []Open{{Offset: 2, Attempts: 1, InFlight: true, Alone: 1, Check: uint16(printOf(2, 0))}, {Offset: 3, Attempts: 1, InFlight: true, Check: uint16(printOf(3, 0))}},
	})
	pushes(t, p, 0, 20)
	var d []*Delivery[int64, any]
	for i := range 20 {
		d = append(d, &Delivery[int64, any]{})
		if _, ok := p.Take(d[i]); ok != (i == 0) {
			t.Fatalf("take %d beside suspects: %v", i, ok)
		}
	}
	if s := p.Snapshot(); len(s.Open) != 2 || !s.Open[0].InFlight || s.Open[0].Alone != 1 {
		t.Errorf("while record 0 is handled: %+v", s.Open)
	}
	done := func(d *Delivery[int64, any]) *Delivery[int64, any] {
		next := &Delivery[int64, any]{}
		if _, ok, _ := p.FinishAndTake(d, &Verdict{Status: Acked}, 0, next); !ok {
			t.Fatal("nothing to take")
		}
		return next
	}
	suspect := done(done(d[0]))
	if suspect.Offset() != 2 || !p.Suspects() {
		t.Fatalf("record %d, suspects %v", suspect.Offset(), p.Suspects())
	}
	if s := p.Snapshot(); s.Open[0].Attempts != 1 || s.Open[0].Alone != 1 {
		t.Errorf("before it is named: %+v", s.Open)
	}
	p.Name(suspect, true)
	if s := p.Snapshot(); s.Open[0].Attempts != 2 || s.Open[0].Alone != 2 || !s.Open[0].InFlight {
		t.Errorf("named: %+v", s.Open)
	}
	if p.Relax() {
		t.Error("relaxed with suspects")
	}
	after := done(done(suspect))
	if p.Suspects() || !p.Relax() {
		t.Error("suspects are left")
	}
	if s := p.Snapshot(); len(s.Open) > 0 {
		t.Errorf("without care %+v is in flight", s.Open)
	}
	_ = after
}
