package partition

import (
	"runtime"
	"testing"
	"weak"
)

// A delivery that the application keeps after the end of the assignment keeps no record.
func TestKeptDeliveryKeepsNoWindow(t *testing.T) {
	type record struct{ bytes []byte }
	for _, order := range []Order{ByPartition, ByKey, Unordered} {
		p := New[any](Config[*record]{
			Order: order, MaxInFlight: 1, Committed: true,
			Key:         func(r *record) []byte { return r.bytes[:2] },
			Fingerprint: func(r *record) uint32 { return uint32(r.bytes[0]) },
		})
		const n = 100
		var records []weak.Pointer[record]
		for i := range n {
			r := &record{bytes: []byte{byte(i), byte(i), 1000: 0}}
			records = append(records, weak.Make(r))
			if _, err := p.Push(int64(i), r, 1); err != nil {
				t.Fatal(err)
			}
		}
		// One of each: left pending, nacked, acked, to wait for its letter, still with its handler.
		var kept []*Delivery[*record, any]
		d := &Delivery[*record, any]{}
		if _, ok := p.Take(d); !ok {
			t.Fatal("nothing to take")
		}
		for _, v := range []Verdict{{}, {Status: Rejected, Hold: true}, {}, {Status: Acked}} {
			next := &Delivery[*record, any]{}
			if _, ok, _ := p.FinishAndTake(d, &v, 0, next); !ok {
				t.Fatal("nothing to take")
			}
			kept = append(kept, d)
			d = next
		}
		p.Settle(kept[2], Verdict{Status: Nacked, DueAt: 1}, 0)
		running := d
		p.Stop()
		p.Close()
		p.Drop()
		held := func() (n int) {
			runtime.GC()
			runtime.GC()
			for _, r := range records {
				if r.Value() != nil {
					n++
				}
			}
			return n
		}
		if n := held(); n > 1 {
			t.Errorf("order %d: %d records are held", order, n)
		}
		if running.Record() == nil || running.Record().bytes == nil {
			t.Errorf("order %d: a handler's record was taken away", order)
		}
		p.FinishAndTake(running, &Verdict{Status: Acked}, 0, &Delivery[*record, any]{})
		if n := held(); n > 0 {
			t.Errorf("order %d: %d records are held after the last handler's end", order, n)
		}
		for i, want := range []Status{Revoked, Rejected, Nacked, Acked} {
			if got := p.Status(kept[i]); got != want {
				t.Errorf("order %d: delivery %d has status %d, want %d", order, i, got, want)
			}
		}
		// Whatever still calls finds a partition that is closed, not one without memory.
		p.Tick(10)
		p.Poke()
		p.Open()
		p.Committed(p.Snapshot(), false)
		p.Evict(0)
		p.Detach(0, 1, 0)
		p.AckCumulative(kept[0])
		p.Release(kept[1])
		p.Want(kept[0])
		p.Unconfirm(kept[0].Seq())
		p.Doubt()
		p.Overview()
		p.Next()
		p.ArmLow(1)
		if l := p.Load(); l.Unsettled != 0 {
			t.Errorf("order %d: load left: %+v", order, l)
		}
		if _, err := p.Push(n, &record{bytes: []byte("no room")}, 1); err != nil {
			t.Errorf("order %d: push: %v", order, err)
		}
	}
}
