package main

import (
	"encoding/base64"
	"testing"
	"time"
)

func TestRecordsInBothSets(t *testing.T) {
	decoded := func(numbers ...uint32) []byte {
		t.Helper()
		s := &recordSet{}
		for _, n := range numbers {
			s.add(n)
		}
		set, err := base64.StdEncoding.DecodeString(s.String())
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	if got := common(decoded(0, 7, 8, 1000), decoded(7, 9, 1000, 20_000)); got != 2 {
		t.Errorf("7 and 1000 are in both, got %d", got)
	}
	if got := common(decoded(), decoded(1)); got != 0 {
		t.Errorf("an empty set has none in common, got %d", got)
	}
}

func TestPauses(t *testing.T) {
	began := time.Now()
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	p := &pauses{last: make([]time.Time, 2)}
	p.at(0, at(0))
	if p.began() {
		t.Error("partition 1 has had no record")
	}
	p.at(1, at(10))
	if !p.began() {
		t.Error("each partition has had a record")
	}
	p.take(at(10))
	p.at(0, at(20))
	p.at(0, at(70))
	p.at(1, at(100))
	if got, want := p.take(at(130)), (gap{worst: 90, all: 50}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	p.at(0, at(140)) // 70 ms after the last one
	if got, want := p.take(at(300)), (gap{worst: 200, all: 160}); got != want {
		t.Errorf("one that has not ended counts: got %v, want %v", got, want)
	}
}
