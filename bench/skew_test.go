package main

import (
	"math"
	"testing"
)

func TestZipfSharesAreThoseOfTheRecords(t *testing.T) {
	const keys, records = 1000, 200_000
	shares := zipfShares(1.1, keys)
	sum := 0.0
	for _, s := range shares {
		sum += s
	}
	if math.Abs(sum-1) > 1e-9 {
		t.Errorf("the shares add up to %v", sum)
	}
	counts := make([]int, keys)
	key := bcase{keys: keys, zipf: 1.1}.key()
	for i := range int64(records) {
		counts[key(i)]++
	}
	for _, k := range []int{0, 1, 2, 10} {
		got := float64(counts[k]) / records
		if math.Abs(got-shares[k]) > 0.05*shares[k] {
			t.Errorf("key %d has %.4f of the records, and by the law %.4f", k, got, shares[k])
		}
	}
}

func TestFirstBelow(t *testing.T) {
	shares := []float64{0.5, 0.3, 0.2}
	for _, c := range []struct {
		share float64
		want  uint32
	}{{0.9, 0}, {0.5, 1}, {0.25, 2}, {0.1, 3}} {
		if got := firstBelow(shares, c.share); got != c.want {
			t.Errorf("below %v comes key %d, want %d", c.share, got, c.want)
		}
	}
}

func TestLaneShareIsThatOfTheHotKeyAndWhatMeetsIt(t *testing.T) {
	shares := zipfShares(1.1, 10_000)
	if got := laneShare(shares, 1); math.Abs(got-1) > 1e-9 {
		t.Errorf("one lane has %v of the records", got)
	}
	got := laneShare(shares, 16)
	if even := shares[0] + (1-shares[0])/16; got < shares[0] || math.Abs(got-even) > 0.05 {
		t.Errorf("the hot key's lane has %v of the records; evenly it would be %v", got, even)
	}
}
