package ackpolicyweb

import (
	"math/rand/v2"
	"strings"
	"testing"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// One record of any kind shows among as many as there may be, also where only the counts of sections are known.
func TestOneRecordShows(t *testing.T) {
	for status, class := range map[ackpolicy.RecordStatus]string{
		ackpolicy.RecordInFlight: "flight", ackpolicy.RecordPending: "pending", ackpolicy.RecordParked: "nacked", ackpolicy.RecordRejecting: "letter",
	} {
		for _, n := range []int64{1, 10, 256, 257, 100_000} {
			at := rand.Int64N(n)
			p := &ackpolicy.PartitionState{Watermark: 0, Committed: 0, Next: n, Unsettled: 1}
			known := &window{records: []ackpolicy.RecordState{{Offset: at, Status: status}}}
			section := ackpolicy.Section{From: at / 64 * 64, To: min(n, at/64*64+64)}
			switch status {
			case ackpolicy.RecordInFlight:
				section.InFlight = 1
			case ackpolicy.RecordPending:
				section.Pending = 1
			case ackpolicy.RecordParked:
				section.Nacked = 1
			default:
				section.Letters = 1
			}
			for _, w := range []*window{known, {sections: []ackpolicy.Section{section}}} {
				drawn := draw(p, w, 256, 48)
				found := false
				for _, path := range drawn.Paths {
					found = found || path.Class == class && strings.HasPrefix(path.D, "M")
				}
				if !found || drawn.Columns > 256 {
					t.Errorf("%v at %d of %d: %d columns, %v", status, at, n, drawn.Columns, drawn.Paths)
				}
			}
		}
	}
}

// A column is as high as the drawing, whatever is in it.
func TestPile(t *testing.T) {
	for range 10_000 {
		var of [drawnKinds]float64
		for k := range of {
			if rand.IntN(3) == 0 {
				of[k] = 1 + rand.Float64()*1000
			}
		}
		for _, height := range []int{12, 48} {
			sum, some := 0, false
			for k, h := range pile(of, height) {
				sum += h
				if some = some || of[k] > 0; h < 0 || of[k] > 0 && h == 0 {
					t.Fatalf("%v: %d", of, h)
				}
			}
			if some && sum != height {
				t.Fatalf("%v: %d of %d", of, sum, height)
			}
		}
	}
}
