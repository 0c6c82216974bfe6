package partition

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
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
		p.FinishAndTake(d, &Verdict{Status: Nacked, DueAt: 1000, Reason: fmt.Errorf("failure %d", attempt+1)}, 0, &Delivery[int, any]{})
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
		n := 1 // the first one, and the latest
		if i > 0 {
			n = 6 - mostTries + i + 1
		}
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
		clock.Store(int64(10*i + 1))
		_, _ = p.Push(int64(i), i, 1)
		if _, ok := p.Take(&ds[i]); !ok {
			t.Fatal("nothing is handed out")
		}
		ds[i].Begin(clock.Load())
	}
	want := func(offset int64, state State, n int) {
		t.Helper()
		switch o, slow, _ := p.Slow(21); {
		case slow != n:
			t.Fatalf("%d are slow, want %d", slow, n)
		case n > 0 && (o.Offset != offset || o.State != state || o.Since != 10*offset+1):
			t.Fatalf("the oldest is %+v, want %d", o, offset)
		}
	}
	finish := func(i int) { p.FinishAndTake(&ds[i], &Verdict{Status: Acked}, 0, &Delivery[int, any]{}) }
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
	p.FinishAndTake(&d, &Verdict{Status: Nacked, DueAt: 1 << 60}, 0, &next)
	reason := errors.New("by hand")
	if own, ok, w := p.Condemn(0, reason, 0); own != nil || !ok || w.Wake+w.Spawn != 1 {
		t.Fatalf("%v, %v, %+v", own, ok, w)
	}
	if _, ok := p.Take(&d); !ok || d.Offset() != 0 || p.Condemned(&d) != reason {
		t.Fatalf("took %d: %v, %v", d.Offset(), ok, p.Condemned(&d))
	}
	p.FinishAndTake(&d, &Verdict{Status: Rejected}, 0, &next)
	if next.Offset() != 1 || p.Condemned(&next) != nil {
		t.Fatalf("then %d, %v", next.Offset(), p.Condemned(&next))
	}
	if own, ok, _ := p.Condemn(1, reason, 0); own != &next || !ok {
		t.Errorf("a record with its handler: %v, %v", own, ok)
	}
	if _, ok, _ := p.Condemn(99, reason, 0); ok {
		t.Error("a record that is not there was condemned")
	}
}

// What nobody has taken yet is no slow handler, and the one that began first is the oldest.
func TestSlowCountsFromTheHandOut(t *testing.T) {
	var clock atomic.Int64
	p := New[any](Config[int]{MaxInFlight: 3, Order: Unordered, Clock: &clock})
	var ds [3]Delivery[int, any]
	for i := range ds {
		_, _ = p.Push(int64(i), i, 1)
		p.Take(&ds[i])
	}
	if o, n, _ := p.Slow(100); o != nil || n != 0 {
		t.Fatalf("%d are slow, %+v", n, o)
	}
	ds[1].Begin(50)
	ds[0].Begin(90)
	ds[2].Begin(150)
	if o, n, _ := p.Slow(100); n != 2 || o.Offset != 1 || o.Since != 50 {
		t.Fatalf("%d are slow, %+v", n, o)
	}
}

// A record that its handler has nacked, and that is condemned before the handler returns, does not wait
// for its time then.
func TestCondemnBeforeTheHandlerReturns(t *testing.T) {
	p := New[any](Config[int]{MaxInFlight: 1})
	_, _ = p.Push(0, 0, 1)
	_, _ = p.Push(1, 1, 1)
	var d, next Delivery[int, any]
	p.Take(&d)
	p.Settle(&d, Verdict{Status: Nacked, DueAt: 1 << 60}, 1)
	if own, ok, _ := p.Condemn(0, errors.New("by hand"), 1); own != nil || !ok {
		t.Fatalf("%v, %v", own, ok)
	}
	_, ok, _ := p.FinishAndTake(&d, nil, 1, &next)
	if !ok || next.Offset() != 0 || p.Condemned(&next) == nil {
		t.Fatalf("then %v: %d, %v", ok, next.Offset(), p.Condemned(&next))
	}
}

// A delivery that reached nobody is none, and leaves what the handler's own said of the record.
func TestRejectedByHandKeepsTheError(t *testing.T) {
	p := New[any](Config[int]{MaxInFlight: 1})
	_, _ = p.Push(0, 0, 1)
	var d, next Delivery[int, any]
	boom, reason := errors.New("boom"), errors.New("by hand")
	p.Take(&d)
	p.FinishAndTake(&d, &Verdict{Status: Nacked, DueAt: 1 << 60, Reason: boom}, 0, &next)
	p.Condemn(0, reason, 0)
	p.Take(&next)
	p.Uncount(&next, p.Condemned(&next))
	p.Settle(&next, Verdict{Status: Rejected, Hold: true, Reason: reason}, 0)
	o := p.Overview().Oldest
	if o.State != Rejecting || o.Attempt != 1 || o.Rejected != reason || len(o.Tries) != 1 || o.Tries[0].Err != boom {
		t.Errorf("%+v", o)
	}
}

// Errors may be large, and nacked records many: those of the first ones are kept.
func TestTriesAreBounded(t *testing.T) {
	p := New[any](Config[int]{MaxInFlight: 1, Order: Unordered})
	nack := func() {
		var d, next Delivery[int, any]
		p.Take(&d)
		p.FinishAndTake(&d, &Verdict{Status: Nacked, DueAt: 1 << 60, Reason: errors.New("boom")}, 0, &next)
	}
	for i := range 2 * mostTried {
		_, _ = p.Push(int64(i), i, 1)
		nack()
	}
	if n := len(p.notes); n != mostTried {
		t.Errorf("the errors of %d records are kept", n)
	}
	if o := p.Overview().Oldest; len(o.Tries) != 1 {
		t.Errorf("%+v", o)
	}
	p.Retry(0, 0)
	nack()
	if o := p.Overview().Oldest; len(o.Tries) != 2 {
		t.Errorf("after another attempt: %+v", o)
	}
}

// What somebody settles by hand does not make the application one that settles late: drains do not wait
// for what it left pending.
func TestByHandIsNotLate(t *testing.T) {
	for name, act := range map[string]func(*Partition[int, any], *Delivery[int, any]){
		"Retry": func(p *Partition[int, any], _ *Delivery[int, any]) { p.Retry(0, 0) },
		"Reject": func(p *Partition[int, any], d *Delivery[int, any]) {
			p.Settle(d, Verdict{Status: Rejected, ByHand: true}, 0)
		},
	} {
		var late atomic.Bool
		p := New[any](Config[int]{MaxInFlight: 1, Order: Unordered, Late: &late})
		var ds [3]Delivery[int, any]
		for i := range 2 {
			_, _ = p.Push(int64(i), i, 1)
		}
		p.Take(&ds[0])
		p.FinishAndTake(&ds[0], nil, 0, &ds[1])
		p.FinishAndTake(&ds[1], nil, 0, &ds[2])
		act(p, &ds[0])
		if late.Load() {
			t.Errorf("%s makes the application late", name)
		}
	}
}

// Marks of an earlier owner beyond what was delivered do not make the count of what is not committed negative.
func TestUncommittedOfInheritedMarks(t *testing.T) {
	const n = 10
	print := func(int) uint32 { return 1 }
	block := ledger.Block{Runs: []ledger.Run{{From: 1, To: n}}, Sum: n - 1}
	p := New[any](Config[int]{MaxInFlight: 1, Committed: true, MaxUncommitted: 5, Marks: []ledger.Block{block}, Fingerprint: print})
	for i := range n {
		_, _ = p.Push(int64(i), i, 1)
	}
	if o := p.Overview(); o.Uncommitted < 0 || o.Unsettled != 1 {
		t.Errorf("%+v", o)
	}
}
