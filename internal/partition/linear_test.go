package partition

import (
	"math"
	"testing"
	"time"
)

// unsettled is a window of n records whose handlers have returned without
// settling them, behind one whose handler runs.
func unsettled(t *testing.T, order Order, n int) (*Partition[int, any], []*Delivery[int, any]) {
	t.Helper()
	p := New[any](Config[int]{
		Order: order, MaxInFlight: 2, Committed: true,
		Key:         func(r int) []byte { return []byte{byte(r), byte(r >> 8), byte(min(r, 1))} },
		Fingerprint: func(r int) uint32 { return uint32(r) },
	})
	if order == ByPartition {
		p.cfg.MaxInFlight = 1
	}
	for i := range n + 1 {
		if _, err := p.Push(int64(i), i, 1); err != nil {
			t.Fatal(err)
		}
	}
	take := func() *Delivery[int, any] {
		d := &Delivery[int, any]{}
		if _, ok := p.Take(d); !ok {
			t.Fatal("nothing to take")
		}
		return d
	}
	held := take()
	if order == ByPartition { // one at a time: the held record, too, is unsettled only
		next := &Delivery[int, any]{}
		if _, ok, _ := p.FinishAndTake(held, nil, 0, next); !ok {
			t.Fatal("nothing to take")
		}
		held = next
	} else {
		held = take()
	}
	all := make([]*Delivery[int, any], 0, n)
	for d := held; ; {
		next := &Delivery[int, any]{}
		_, ok, _ := p.FinishAndTake(d, nil, 0, next)
		all = append(all, d)
		if !ok {
			break
		}
		d = next
	}
	if len(all) != n {
		t.Fatalf("%d of %d records delivered", len(all), n)
	}
	return p, all
}

// TestLinear holds what is done under the partition's lock to time that grows with the
// number of records, not with its square: four times as many take four times as long,
// not sixteen.
func TestLinear(t *testing.T) {
	later := Verdict{Status: Nacked, DueAt: math.MaxInt64}
	settle := func(p *Partition[int, any], d *Delivery[int, any], v Verdict) {
		if _, first, _ := p.Settle(d, v, 0); !first {
			t.Fatalf("record %d was settled before", d.Offset())
		}
	}
	newestFirst := func(p *Partition[int, any], all []*Delivery[int, any], v Verdict) {
		for i := len(all) - 1; i >= 0; i-- {
			settle(p, all[i], v)
		}
	}
	cases := map[string]struct {
		order   Order
		prepare func(p *Partition[int, any], all []*Delivery[int, any])
		do      func(p *Partition[int, any], all []*Delivery[int, any])
	}{
		"AckCumulative a record, behind a held one": {order: Unordered, do: func(p *Partition[int, any], all []*Delivery[int, any]) {
			for _, d := range all {
				p.AckCumulative(d)
			}
		}},
		"AckCumulative a record by key, behind a held one": {order: ByKey, do: func(p *Partition[int, any], all []*Delivery[int, any]) {
			for _, d := range all {
				p.AckCumulative(d)
			}
		}},
		"late nacks, newest first": {order: ByPartition, do: func(p *Partition[int, any], all []*Delivery[int, any]) {
			newestFirst(p, all, later)
		}},
		"late nacks that are due, newest first": {order: ByPartition, do: func(p *Partition[int, any], all []*Delivery[int, any]) {
			newestFirst(p, all, Verdict{Status: Nacked})
		}},
		"one AckCumulative over nacked ones": {
			order: ByPartition,
			prepare: func(p *Partition[int, any], all []*Delivery[int, any]) {
				for _, d := range all[:len(all)-1] {
					settle(p, d, later)
				}
			},
			do: func(p *Partition[int, any], all []*Delivery[int, any]) {
				p.AckCumulative(all[len(all)-1])
			},
		},
		"late acks in a drain, newest first": {
			order:   Unordered,
			prepare: func(p *Partition[int, any], all []*Delivery[int, any]) { p.Stop() },
			do:      func(p *Partition[int, any], all []*Delivery[int, any]) { newestFirst(p, all, Verdict{Status: Acked}) },
		},
		"late nacks in a drain": {
			order:   Unordered,
			prepare: func(p *Partition[int, any], all []*Delivery[int, any]) { p.Stop() },
			do: func(p *Partition[int, any], all []*Delivery[int, any]) {
				settle(p, all[len(all)-1], Verdict{Status: Acked})
				newestFirst(p, all[:len(all)-1], later)
			},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			took := func(n int) time.Duration {
				p, all := unsettled(t, c.order, n)
				if c.prepare != nil {
					c.prepare(p, all)
				}
				began := time.Now()
				c.do(p, all)
				return time.Since(began)
			}
			const n = 10_000
			few, many := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
			linear := false
			for try := 0; try < 20 && !linear; try++ { // others share the machine, and can only make it take longer
				few, many = min(few, took(n)), min(many, took(4*n))
				linear = many <= 12*few+20*time.Millisecond
			}
			t.Logf("%d records: %v, %d: %v", n, few, 4*n, many)
			if !linear {
				t.Errorf("%d records took %v, %d took %v", n, few, 4*n, many)
			}
		})
	}
}
