package ledger

import (
	"errors"
	"flag"
	"fmt"
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

// A ledger is good where it was stored, and nowhere else.
func TestElsewhere(t *testing.T) {
	l := random(rand.New(rand.NewPCG(1, 5)), place, 100, 0.2)
	text, _ := Encode(place, l, DefaultRoom)
	for _, at := range []Place{
		{"orders", 3, 1001}, {"orders", 2, 1000}, {"order", 3, 1000}, {"orders2", 3, 1000},
	} {
		if _, err := Decode(at, text); !errors.Is(err, ErrDamaged) {
			t.Errorf("%+v: %v", at, err)
		}
	}
}

func TestForeign(t *testing.T) {
	for text, wanted := range map[string]error{
		"":                                ErrNone,
		"x":                               ErrForeign,
		"ackpolicy":                       ErrForeign,
		"ackpolicy1":                      ErrForeign,
		"ackpolicy0:":                     ErrForeign,
		"ackpolicyx:":                     ErrForeign,
		"ackpolicy2:":                     ErrNewer,
		"ackpolicy1:":                     ErrDamaged,
		"ackpolicy1:AAAAAAA":              ErrDamaged,
		"ackpolicy1:" + "\xff\xfe":        ErrDamaged,
		`{"leaderEpoch":5,"metadata":""}`: ErrForeign,
		strings.Repeat("A", 5000):         ErrForeign,
	} {
		if l, err := Decode(place, text); !errors.Is(err, wanted) || l != nil {
			t.Errorf("%q: %+v, %v, want %v", text, l, err, wanted)
		}
	}
}

// One changed, missing or added character is always noticed.
func TestDamage(t *testing.T) {
	l := random(rand.New(rand.NewPCG(1, 6)), place, 600, 0.2)
	for _, room := range []int{DefaultRoom, 300} {
		text, _ := Encode(place, l, room)
		for i := range text {
			for _, c := range []byte{text[i] ^ 1, text[i] ^ 32, 'A', '~'} {
				changed := text[:i] + string(c) + text[i+1:]
				if _, err := Decode(place, changed); err == nil && changed != text {
					t.Fatalf("character %d changed from %c to %c", i, text[i], c)
				}
			}
			if _, err := Decode(place, text[:i]); err == nil {
				t.Fatalf("cut to %d characters", i)
			}
		}
		if _, err := Decode(place, text+"A"); err == nil {
			t.Fatal("one character more")
		}
	}
}

var mutations = flag.Int("mutations", 50_000, "texts that TestMutations tries")

// Random, cut, changed, extended and future texts: none is trusted, none does any harm.
func TestMutations(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 10))
	var texts []string
	for range 64 {
		text, _ := Encode(place, random(rng, place, rng.IntN(400), rng.Float64()), DefaultRoom)
		texts = append(texts, text)
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=:\x00\xff"
	letter := func() string { return string(alphabet[rng.IntN(len(alphabet))]) }
	for range *mutations {
		text := texts[rng.IntN(len(texts))]
		changed := text
		at := rng.IntN(len(text))
		switch rng.IntN(6) {
		case 0:
			changed = text[:at]
		case 1:
			changed = text[:at] + string(text[at]^1<<rng.IntN(8)) + text[at+1:]
		case 2:
			changed = text[:at] + letter() + text[at:]
		case 3:
			changed = fmt.Sprint("ackpolicy", rng.IntN(1<<20)+2, text[len(prefix)-1:])
		case 4: // two of them, crossed
			other := texts[rng.IntN(len(texts))]
			changed = text[:at] + other[min(at, len(other)):]
			if slices.Contains(texts, changed) {
				continue
			}
		default:
			b := []byte(prefix)
			for range rng.IntN(200) {
				b = append(b, alphabet[rng.IntN(64)])
			}
			changed = string(b)
		}
		if l, err := Decode(place, changed); changed != text && (err == nil || l != nil) {
			t.Fatalf("%q is taken for a ledger", changed)
		}
	}
}

func TestFingerprint(t *testing.T) {
	at := time.UnixMilli(1_800_000_000_000)
	seen := map[uint32]string{}
	add := func(name string, f uint32) {
		if other, ok := seen[f]; ok {
			t.Errorf("%s and %s have one fingerprint", name, other)
		}
		seen[f] = name
	}
	add("plain", Hash{}.Fingerprint(5, at, []byte("k"), []byte("v")))
	add("offset", Hash{}.Fingerprint(6, at, []byte("k"), []byte("v")))
	add("time", Hash{}.Fingerprint(5, at.Add(time.Millisecond), []byte("k"), []byte("v")))
	add("key", Hash{}.Fingerprint(5, at, []byte("l"), []byte("v")))
	add("shifted", Hash{}.Fingerprint(5, at, []byte("kv"), nil))
	add("nil key", Hash{}.Fingerprint(5, at, nil, []byte("v")))
	add("empty key", Hash{}.Fingerprint(5, at, []byte{}, []byte("v")))
	var h Hash
	h.Bytes([]byte("header"))
	add("header", h.Fingerprint(5, at, []byte("k"), []byte("v")))

	// Records that changed places, or one that stands for another, have another sum.
	sum := func(values ...string) (s uint32) {
		for i, v := range values {
			s += Hash{}.Fingerprint(int64(i), at, nil, []byte(v))
		}
		return s
	}
	a := sum("A1", "B1", "A2")
	for _, other := range []uint32{sum("B1", "A1", "A2"), sum("A1", "A2", "B1"), sum("A1", "B1", "B1"), sum("A1", "B1")} {
		if a == other {
			t.Error("another log has the same sum")
		}
	}
	got := Hash{}.Fingerprint(5, at, []byte("k"), []byte("v"))
	if want := uint32(0); got == want { // and it is the same in every process: see docs/ledger.md
		t.Error("no fingerprint")
	}
}

func FuzzDecode(f *testing.F) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 7))
		text, _ := Encode(place, random(rng, place, rng.IntN(1000), rng.Float64()), DefaultRoom)
		f.Add(text, int64(1000))
	}
	f.Add("ackpolicy1:", int64(0))
	f.Fuzz(func(t *testing.T, text string, offset int64) {
		if offset < 0 {
			return // Kafka stores none
		}
		at := Place{"orders", 3, offset}
		l, err := Decode(at, text)
		if (l == nil) == (err == nil) {
			t.Fatalf("%+v, %v", l, err)
		}
	})
}

// FuzzBody reads bodies whose checksum is right: what only a faulty version could write.
func FuzzBody(f *testing.F) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 8))
		l := random(rng, place, rng.IntN(300), rng.Float64())
		text, _ := Encode(place, l, DefaultRoom)
		f.Add(bodyOf(text), place.Offset)
	}
	f.Fuzz(func(t *testing.T, data []byte, offset int64) {
		if offset < 0 || len(data) == 0 {
			return
		}
		at := Place{"orders", 3, offset}
		l, err := Decode(at, seal(at, data))
		if err != nil {
			return
		}
		last := offset
		for _, b := range l.Blocks {
			for _, r := range b.Runs {
				if r.From < last || r.To <= r.From {
					t.Fatalf("marks are not in order: %+v", l.Blocks)
				}
				last = r.To
			}
		}
		text, kept := Encode(at, l, 1<<24)
		again, err := Decode(at, text)
		if err != nil {
			t.Fatalf("%+v is not read again: %v", l, err)
		}
		want(t, again, l, kept)
	})
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
