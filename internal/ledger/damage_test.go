package ledger

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

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
