package ledger

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var place = Place{Topic: "orders", Partition: 3, Offset: 1000}

// random makes a ledger over n records from at on, of which a share is open. Some
// offsets hold no record.
func random(rng *rand.Rand, at Place, n int, open float64) *Ledger {
	l := &Ledger{Clean: rng.IntN(2) == 0}
	if rng.IntN(2) == 0 {
		for i := range l.TopicID {
			l.TopicID[i] = byte(rng.Uint32())
		}
		l.Cluster = rng.Uint32()
	}
	if rng.IntN(4) == 0 {
		l.Crashes, l.CrashedAt = 1+rng.IntN(9), time.UnixMilli(1_800_000_000_000+rng.Int64N(1e9))
	}
	now := time.UnixMilli(1_800_000_000_000)
	var b *Block
	offset, run := at.Offset, false
	for i := range n {
		if i > 0 && rng.IntN(50) == 0 {
			offset += rng.Int64N(5)
		}
		if i%64 == 0 && (b == nil || len(b.Runs) > 0) {
			l.Blocks = append(l.Blocks, Block{Sum: rng.Uint32()})
			b, run = &l.Blocks[len(l.Blocks)-1], false
		}
		if i == 0 || rng.Float64() < open { // the first is open by definition
			run = false
			o := Open{Offset: offset, Attempts: 1 + rng.IntN(5), Check: uint16(rng.Uint32()), InFlight: rng.IntN(5) == 0}
			if o.InFlight {
				o.Alone = rng.IntN(3)
			}
			if rng.IntN(3) == 0 {
				o.Due = now.Add(time.Duration(rng.Int64N(int64(time.Hour)))).Truncate(time.Millisecond)
			}
			if rng.IntN(3) == 0 {
				o.First = now.Add(-time.Duration(rng.Int64N(int64(time.Hour)))).Truncate(time.Millisecond)
			}
			if rng.IntN(3) == 0 {
				o.Delay = time.Duration(1+rng.Int64N(1e6)) * time.Millisecond
			}
			if rng.IntN(9) == 0 {
				o.Rejected = "rejected by hand"
			}
			if rng.IntN(9) == 0 {
				o.Err = strings.Repeat("boom", 1+rng.IntN(9))
			}
			l.Open = append(l.Open, o)
		} else if run {
			b.Runs[len(b.Runs)-1].To = offset + 1
		} else {
			if k := len(b.Runs); k > 0 && b.Runs[k-1].To == offset {
				b.Runs[k-1].To = offset + 1
			} else {
				b.Runs = append(b.Runs, Run{offset, offset + 1})
			}
			run = true
		}
		offset++
	}
	l.Blocks = slices.DeleteFunc(l.Blocks, func(b Block) bool { return len(b.Runs) == 0 })
	return l
}

func decode(t testing.TB, at Place, text string) *Ledger {
	t.Helper()
	l, err := Decode(at, text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return l
}

// want compares what was read with what was kept of the original.
func want(t testing.TB, got, l *Ledger, kept Kept) {
	t.Helper()
	w := *l
	w.Blocks, w.Open = nil, nil
	for i, b := range l.Blocks {
		if kept.Blocks[i] {
			b.Rank = Plain
			w.Blocks = append(w.Blocks, b)
		}
	}
	for _, o := range l.Open[:kept.Open] {
		if !kept.Times {
			o.Due, o.First = time.Time{}, time.Time{}
		}
		if !kept.Delays {
			o.Delay = 0
		}
		if !kept.Errs {
			o.Err = ""
		}
		if !kept.Rejects {
			o.Rejected = ""
		}
		w.Open = append(w.Open, o)
	}
	g := *got
	if len(g.Blocks) == 0 {
		g.Blocks = nil
	}
	if !reflect.DeepEqual(g, w) {
		t.Fatalf("got  %+v\nwant %+v", g, w)
	}
}

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		l := random(rng, place, rng.IntN(400), rng.Float64())
		text, kept := Encode(place, l, 1<<20)
		want(t, decode(t, place, text), l, kept)
		if !kept.Whole(l) {
			t.Fatalf("seed %d: with all the room kept %+v", seed, kept)
		}
	}
}

func TestMarked(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 4))
	l := random(rng, place, 300, 0.3)
	for offset := place.Offset - 2; offset < place.Offset+400; offset++ {
		block, marked := Marked(l.Blocks, offset)
		wantBlock, wantMarked := 0, false
		for i, b := range l.Blocks {
			for _, r := range b.Runs {
				if r.From <= offset && offset < r.To {
					wantBlock, wantMarked = i, true
				}
			}
		}
		if marked != wantMarked || marked && block != wantBlock {
			t.Errorf("%d: %d %v, want %d %v", offset, block, marked, wantBlock, wantMarked)
		}
	}
}

// The record at the committed offset may have a mark that is not checked yet.
func TestMarkAtTheOffset(t *testing.T) {
	for _, runs := range [][]Run{{{1000, 1001}}, {{1000, 1003}, {1005, 1006}}, {{1000, 90_000}}} {
		l := &Ledger{Blocks: []Block{{Runs: runs, Sum: 7}}}
		text, kept := Encode(place, l, DefaultRoom)
		want(t, decode(t, place, text), l, kept)
	}
}
