package main

import (
	"context"
	"testing"
	"time"
)

func TestPaceKeepsToTheScheduleBehindAStall(t *testing.T) {
	var dues []time.Time
	var late time.Duration
	err := pace(t.Context(), 1000, 100, func(i int64, due time.Time) {
		if i == 0 {
			time.Sleep(50 * time.Millisecond)
		}
		if time.Now().Before(due) {
			t.Errorf("record %d is sent before it is due", i)
		}
		if i == 1 {
			late = time.Since(due)
		}
		dues = append(dues, due)
	})
	if err != nil {
		t.Fatal(err)
	}
	if late < 49*time.Millisecond-time.Millisecond {
		t.Errorf("the record behind a stall of 50 ms is %v late", late)
	}
	for i, due := range dues {
		if got, want := due.Sub(dues[0]), time.Duration(i)*time.Millisecond; got != want {
			t.Errorf("record %d is due after %v, want %v", i, got, want)
		}
	}
}

func TestPaceEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	if err := pace(ctx, 0.001, 2, func(int64, time.Time) { cancel() }); err != context.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestTimedBook(t *testing.T) {
	b := newTimedBook(timed{Job: job{Partitions: 2}, ColdKey: 3})
	due := time.Now()
	if b.note(stamp{kind: prime}, due) {
		t.Error("one of two partitions is read")
	}
	if !b.note(stamp{kind: prime}, due) {
		t.Error("both partitions are read")
	}
	b.note(stamp{due: due, kind: warmUp}, due.Add(time.Hour))
	for i := range 1000 {
		key := uint32(i % 4) // 0 is hot, 3 is cold, the others are neither
		b.note(stamp{due: due, key: key, kind: measured}, due.Add(time.Duration(i+1)*time.Millisecond))
	}
	r := b.result()
	if r.All.Count != 1000 || r.Hot.Count != 250 || r.Cold.Count != 250 {
		t.Errorf("counted %d, of which %d hot and %d cold", r.All.Count, r.Hot.Count, r.Cold.Count)
	}
	for name, c := range map[string]struct{ got, want float64 }{
		"p50": {r.All.P50, 500}, "p99": {r.All.P99, 990}, "p99.9": {r.All.P999, 999}, "max": {r.All.Max, 1000},
		"hot p50": {r.Hot.P50, 497}, "cold max": {r.Cold.Max, 1000},
	} {
		if c.got < c.want*0.999 || c.got > c.want*1.001 {
			t.Errorf("%s is %v ms, want %v", name, c.got, c.want)
		}
	}
}

func TestStamp(t *testing.T) {
	want := stamp{due: time.Unix(5, 7), key: 1 << 20, kind: measured}
	for _, size := range []int{0, 100} {
		value := want.encode(size)
		if got := decodeStamp(value); !got.due.Equal(want.due) || got.key != want.key || got.kind != want.kind {
			t.Errorf("%d bytes give %+v, want %+v", len(value), got, want)
		}
	}
}
