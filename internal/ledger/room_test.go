package ledger

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// Whatever the room, the text fits, is read again, and holds the rest by priority.
func TestRoom(t *testing.T) {
	seeds := uint64(10)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 2))
		l := random(rng, place, 3000, 0.05+rng.Float64()/2)
		for range 3 {
			l.Blocks[rng.IntN(len(l.Blocks))].Rank = Awaited
			l.Blocks[rng.IntN(len(l.Blocks))].Rank = Promised
		}
		last := -1
		for room := 0; room < 6000; room += 1 + rng.IntN(400) {
			text, kept := Encode(place, l, room)
			if len(text) > room {
				t.Fatalf("%d bytes in a room of %d", len(text), room)
			}
			blocks := 0
			left := [Promised + 1]bool{} // something of the rank is
			for rank := int(Promised); rank >= 0; rank-- {
				for i, k := range kept.Blocks {
					switch {
					case l.Blocks[i].Rank != Rank(rank):
					case !k:
						left[rank] = true
					case slices.Contains(left[rank:], true):
						t.Fatalf("room %d: block %d is kept, and one before it or of a higher rank is not: %+v", room, i, kept)
					default:
						blocks++
					}
				}
			}
			switch {
			case kept.Times && kept.Open < len(l.Open), kept.Open > 0 && blocks < len(l.Blocks):
				t.Fatalf("room %d: the order of what is left out is wrong: %+v", room, kept)
			case text == "":
				continue
			}
			want(t, decode(t, place, text), l, kept)
			if blocks+4 < last { // content with a few percent less
				t.Fatalf("room %d: %d blocks, and %d in less room", room, blocks, last)
			}
			last = blocks
		}
	}
}

// How many records fit into a broker's default of 4,096 bytes.
func TestCapacity(t *testing.T) {
	for _, c := range []struct {
		name   string
		n      int
		open   float64
		marked int // at least
	}{
		{"one open record", 1_000_000, 0, 999_999},
		{"1 of 100 open", 100_000, 0.01, 95_000},
		{"1 of 20 open", 100_000, 0.05, 35_000},
		{"every second one open, at random", 100_000, 0.5, 9_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 3))
			l := random(rng, place, c.n, c.open)
			l.Blocks = merged(l.Blocks, 64)
			text, kept := Encode(place, l, DefaultRoom)
			marked, all := 0, 0
			for i, b := range l.Blocks {
				for _, r := range b.Runs {
					all += int(r.To - r.From)
					if kept.Blocks[i] {
						marked += int(r.To - r.From)
					}
				}
			}
			t.Logf("%d of %d marks, %d of %d open records, %d bytes", marked, all, kept.Open, len(l.Open), len(text))
			if marked < c.marked || len(text) > DefaultRoom {
				t.Errorf("%d marks in %d bytes, want %d", marked, len(text), c.marked)
			}
		})
	}
}

// merged makes n blocks of many.
func merged(blocks []Block, n int) []Block {
	var out []Block
	per := max(1, (len(blocks)+n-1)/n)
	for chunk := range slices.Chunk(blocks, per) {
		var b Block
		for _, c := range chunk {
			for _, r := range c.Runs {
				if k := len(b.Runs); k > 0 && b.Runs[k-1].To == r.From {
					b.Runs[k-1].To = r.To
				} else {
					b.Runs = append(b.Runs, r)
				}
			}
			b.Sum += c.Sum
		}
		out = append(out, b)
	}
	return out
}

func BenchmarkEncode(b *testing.B) {
	for _, c := range []struct {
		n    int
		open float64
	}{{1, 0}, {100, 0.3}, {20_000, 0.0001}, {100_000, 0.05}, {100_000, 0.5}} {
		l := random(rand.New(rand.NewPCG(1, 9)), place, c.n, c.open)
		l.Blocks = merged(l.Blocks, 64)
		b.Run(fmt.Sprintf("%d,%v", c.n, c.open), func(b *testing.B) {
			b.ReportAllocs()
			size := 0
			for b.Loop() {
				text, _ := Encode(place, l, DefaultRoom)
				size = len(text)
			}
			b.ReportMetric(float64(size), "bytes")
		})
	}
}
