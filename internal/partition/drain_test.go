package partition

import "testing"

// keys makes a partition with a record a key, from offset 0 on.
func keys(t *testing.T, order Order, maxInFlight int, keys ...string) *Partition[string] {
	t.Helper()
	p := New(Config[string]{Order: order, Key: func(r string) []byte { return []byte(r) }, MaxInFlight: maxInFlight, Committed: true})
	for i, key := range keys {
		if _, err := p.Push(int64(i), key, 1); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// takes hands out the records, which must be those.
func takes(t *testing.T, p *Partition[string], offsets ...int64) (all []*Delivery[string]) {
	t.Helper()
	for _, offset := range offsets {
		d := &Delivery[string]{}
		if _, ok := p.Take(d); !ok || d.Offset() != offset {
			t.Fatalf("handed out: %v, offset %d, want %d", ok, d.Offset(), offset)
		}
		all = append(all, d)
	}
	return all
}

func takesNothing(t *testing.T, p *Partition[string]) {
	t.Helper()
	d := &Delivery[string]{}
	if _, ok := p.Take(d); ok {
		t.Fatalf("offset %d was handed out", d.Offset())
	}
}

// ends finishes a delivery; a slot looks for the next only when the test takes it.
func ends(p *Partition[string], d *Delivery[string], v Verdict) {
	p.Settle(d, v, 0)
	if _, ok, _ := p.FinishAndTake(d, Verdict{}, 0, &Delivery[string]{}); ok {
		panic("the test has more records than it takes first")
	}
}

// Where all slots wait for a commit, the record that holds it gets the one in reserve, in a drain, too.
func TestDrainUsesTheReserve(t *testing.T) {
	p := keys(t, ByKey, 2, "a", "b", "c")
	d := takes(t, p, 0, 1)
	next := &Delivery[string]{}
	p.FinishAndTake(d[0], Verdict{Status: Nacked, DueAt: 5}, 0, next)
	for _, waits := range []*Delivery[string]{d[1], next} {
		p.Settle(waits, Verdict{Status: Acked}, 0)
		p.Wait(waits, +1)
	}
	p.Stop(10)
	if w := p.Tick(5); w.Wake+w.Spawn == 0 {
		t.Error("no slot is told")
	}
	takes(t, p, 0)
}

// A nacked record that comes due too late is left, also once its time has come; and so are all when told.
func TestDrainLeavesWhatComesLate(t *testing.T) {
	for name, leave := range map[string]func(*Partition[string]){
		"after its time": func(p *Partition[string]) { p.Tick(15) },
		"told":           func(p *Partition[string]) { p.Tick(9); p.LeaveNacked() },
	} {
		t.Run(name, func(t *testing.T) {
			p := keys(t, Unordered, 3, "a", "b", "c")
			d := takes(t, p, 0, 1, 2)
			due := int64(15)
			if name == "told" {
				due = 9
			}
			ends(p, d[0], Verdict{Status: Nacked, DueAt: due})
			ends(p, d[1], Verdict{Status: Acked})
			drained, _ := p.Stop(10)
			leave(p)
			takesNothing(t, p)
			if seq, ok := p.Leaves(); !ok || seq != 0 {
				t.Errorf("leaves %d, %v", seq, ok)
			}
			ends(p, d[2], Verdict{Status: Acked})
			select {
			case <-drained:
			default:
				t.Error("not drained")
			}
		})
	}
}

// Who gives a nacked record back, for nobody took it, gives it back as a nacked one: before those behind it in its lane,
// and among those that are left.
func TestDrainAbandonsANackedRecord(t *testing.T) {
	p := keys(t, ByKey, 4, "a", "a", "b")
	d := takes(t, p, 0, 2)
	next := &Delivery[string]{}
	p.FinishAndTake(d[0], Verdict{}, 0, next) // pending, as under Manual
	if next.Offset() != 1 {
		t.Fatal(next.Offset())
	}
	ends(p, next, Verdict{})
	ends(p, d[1], Verdict{Status: Acked})
	p.Settle(d[0], Verdict{Status: Nacked}, 0)
	p.Settle(next, Verdict{Status: Nacked}, 0)
	again := takes(t, p, 0)[0]
	p.Stop(10)
	next = &Delivery[string]{}
	if _, ok := p.Abandon(again, next); !ok || next.Offset() != 0 || next.Attempt() != 2 {
		t.Errorf("after record 0 was given back: %v, offset %d, attempt %d", ok, next.Offset(), next.Attempt())
	}
	p.GiveUp()
	p.Abandon(next, &Delivery[string]{})
	if left, _ := p.Close(); left.Nacked != 2 || left.First != 0 {
		t.Errorf("left: %+v", left)
	}
}

// A handler that waits for a commit holds the lane of the record which that commit waits for: it is told that this is left.
func TestDrainEndsAWaitInTheLane(t *testing.T) {
	p := keys(t, ByPartition, 1, "a", "b")
	d := takes(t, p, 0)
	next := &Delivery[string]{}
	p.FinishAndTake(d[0], Verdict{}, 0, next)
	p.Settle(next, Verdict{Status: Acked}, 0)
	p.Stop(10)
	p.Settle(d[0], Verdict{Status: Nacked}, 0)
	if _, ok := p.Leaves(); ok {
		t.Error("left, while a handler runs that may end")
	}
	p.Wait(next, +1)
	if seq, ok := p.Leaves(); !ok || seq != 0 {
		t.Errorf("leaves %d, %v", seq, ok)
	}
}
