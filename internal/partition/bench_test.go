package partition

import (
	"sync/atomic"
	"testing"
)

// BenchmarkCycle has the cost of a record from Push to its settlement: taken at once, or from
// a window of 1,000 records.
func BenchmarkCycle(b *testing.B) {
	for _, c := range []struct {
		name  string
		order Order
		ahead int
	}{{"partition", ByPartition, 0}, {"partition_window", ByPartition, 1000}, {"unordered_window", Unordered, 1000}, {"key_window", ByKey, 1000}} {
		b.Run(c.name, func(b *testing.B) {
			var clock atomic.Int64
			keys := [64][]byte{}
			for i := range keys {
				keys[i] = []byte{byte(i)}
			}
			record := new(int)
			i := 0
			p := New[*Delivery[*int, int]](Config[*int]{
				Order: c.order, MaxInFlight: 1, MaxUncommitted: 1 << 20, Clock: &clock, Bytes: new(Bytes),
				Key: func(*int) []byte { i++; return keys[i%64] },
			})
			offset := int64(0)
			push := func() {
				if _, err := p.Push(offset, record, 100); err != nil {
					b.Fatal(err)
				}
				offset++
			}
			for range c.ahead {
				push()
			}
			push()
			d, next := &Delivery[*int, *Delivery[*int, int]]{}, &Delivery[*int, *Delivery[*int, int]]{}
			p.Take(d)
			b.ReportAllocs()
			for b.Loop() {
				push()
				p.FinishAndTake(d, &Verdict{Status: Acked}, 0, next)
				*d = Delivery[*int, *Delivery[*int, int]]{}
				d, next = next, d
			}
		})
	}
}
