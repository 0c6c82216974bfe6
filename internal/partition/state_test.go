package partition

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
)

// A snapshot says of the record that holds the watermark since when it is in its state, and how
// its last deliveries ended.
func TestOverviewOfARetriedRecord(t *testing.T) {
	var clock atomic.Int64
	p := New[any](Config[int]{MaxInFlight: 1, Clock: &clock, Key: func(int) []byte { return []byte("key") }})
	_, _ = p.Push(7, 7, 1)
	d := &Delivery[int, any]{}
	for attempt := range 6 {
		clock.Store(int64(10 * attempt))
		if _, ok := p.Take(d); !ok {
			t.Fatal("nothing is handed out")
		}
		clock.Store(int64(10*attempt + 5))
		p.FinishAndTake(d, Verdict{Status: Nacked, DueAt: 1000, Reason: fmt.Errorf("failure %d", attempt+1)}, 0, &Delivery[int, any]{})
		if attempt < 5 {
			if was, ok, _ := p.Retry(7, 0); !ok || was != Parked {
				t.Fatalf("retry: %v, %v", was, ok)
			}
		}
	}
	o := p.Overview().Oldest
	if o == nil || o.Offset != 7 || o.State != Parked || o.Since != 55 || o.Attempt != 6 || o.DueAt != 1000 || string(o.Key) != "key" || len(o.Tries) != mostTries {
		t.Fatalf("%+v", o)
	}
	for i, try := range o.Tries {
		n := 6 - mostTries + i + 1
		if try.Attempt != n || try.Began != int64(10*(n-1)) || try.Ended != try.Began+5 || try.Err.Error() != fmt.Sprint("failure ", n) {
			t.Errorf("try %+v of attempt %d", try, n)
		}
	}
}

// The oldest delivery is found, though its record is settled.
func TestSlow(t *testing.T) {
	var clock atomic.Int64
	p := New[any](Config[int]{MaxInFlight: 4, Order: Unordered, Clock: &clock})
	var ds [4]Delivery[int, any]
	for i := range ds {
		clock.Store(int64(10 * i))
		_, _ = p.Push(int64(i), i, 1)
		if _, ok := p.Take(&ds[i]); !ok {
			t.Fatal("nothing is handed out")
		}
	}
	want := func(offset int64, state State, n int) {
		t.Helper()
		switch o, slow := p.Slow(20); {
		case slow != n:
			t.Fatalf("%d are slow, want %d", slow, n)
		case n > 0 && (o.Offset != offset || o.State != state || o.Since != 10*offset):
			t.Fatalf("the oldest is %+v, want %d", o, offset)
		}
	}
	finish := func(i int) { p.FinishAndTake(&ds[i], Verdict{Status: Acked}, 0, &Delivery[int, any]{}) }
	want(0, InFlight, 3)
	finish(1)
	want(0, InFlight, 2)
	p.Settle(&ds[0], Verdict{Status: Acked}, 0)
	want(0, settled, 2)
	finish(0)
	want(2, InFlight, 1)
	finish(2)
	want(0, 0, 0)
}

// A condemned record is handed out at once, with the reason; others are as they were.
func TestCondemn(t *testing.T) {
	p := New[any](Config[int]{MaxInFlight: 1})
	for i := range 3 {
		_, _ = p.Push(int64(i), i, 1)
	}
	var d, next Delivery[int, any]
	p.Take(&d)
	p.FinishAndTake(&d, Verdict{Status: Nacked, DueAt: 1 << 60}, 0, &next)
	reason := errors.New("by hand")
	if own, ok, w := p.Condemn(0, reason, 0); own != nil || !ok || w.Wake+w.Spawn != 1 {
		t.Fatalf("%v, %v, %+v", own, ok, w)
	}
	if _, ok := p.Take(&d); !ok || d.Offset() != 0 || d.Condemned() != reason {
		t.Fatalf("took %d: %v, %v", d.Offset(), ok, d.Condemned())
	}
	p.FinishAndTake(&d, Verdict{Status: Rejected}, 0, &next)
	if next.Offset() != 1 || next.Condemned() != nil {
		t.Fatalf("then %d, %v", next.Offset(), next.Condemned())
	}
	if own, ok, _ := p.Condemn(1, reason, 0); own != &next || !ok {
		t.Errorf("a record with its handler: %v, %v", own, ok)
	}
	if _, ok, _ := p.Condemn(99, reason, 0); ok {
		t.Error("a record that is not there was condemned")
	}
}
