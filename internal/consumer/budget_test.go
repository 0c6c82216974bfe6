package consumer

import (
	"testing"
	"testing/synctest"
	"time"
)

const kib = 1 << 10

// budgeted are claims of partitions with lag under a bound of a mebibyte.
func budgeted(n int) (*budget, []*portion) {
	b := &budget{bound: 1024 * kib}
	claims := make([]*portion, n)
	for i := range claims {
		p := &portion{gate: newGate(func(bool) {}), end: func() int64 { return 1000 }}
		p.bytes.Total = &b.held
		claims[i] = p
		b.enter(p)
	}
	return b, claims
}

// fetchOne is what a claim does when a fetch brought records of a size.
func (b *budget) fetchOne(p *portion, records, size int64) {
	p.next.Add(records)
	p.pushed.Add(records * size)
	p.largest.Store(max(p.largest.Load(), size))
	p.bytes.Add(records * size)
	b.looked(p)
}

// opened counts those that may fetch.
func opened(claims []*portion) (n int) {
	for _, p := range claims {
		if !p.gate.closed() {
			n++
		}
	}
	return n
}

// Before anybody knows what a fetch brings, few fetch at once; then as many as fit.
func TestBudgetLearns(t *testing.T) {
	b, claims := budgeted(8)
	if n := opened(claims); n != firstFetches {
		t.Fatalf("%d may fetch at first", n)
	}
	b.fetchOne(claims[0], 10, kib)
	if n := opened(claims); n != len(claims) {
		t.Errorf("%d may fetch, though fetches are small", n)
	}
}

// Large fetches come one at a time, and each claim has its turn.
func TestBudgetTurns(t *testing.T) {
	const size = 400
	b, claims := budgeted(8)
	for _, p := range claims[:firstFetches] {
		b.fetchOne(p, 1, size*kib)
	}
	had := map[*portion]bool{}
	for _, p := range claims[:firstFetches] {
		p.bytes.Add(-size * kib)
		had[p] = true
	}
	b.update(claims[0])
	for len(had) < len(claims) {
		if n := opened(claims); n != 1 {
			t.Fatalf("%d may fetch", n)
		}
		for _, p := range claims {
			if !p.gate.closed() {
				if had[p] {
					t.Fatal("a claim has its second turn before all had their first")
				}
				had[p] = true
				b.fetchOne(p, 1, size*kib)
				if b.held.Load() > b.bound {
					t.Fatalf("%d bytes are held", b.held.Load())
				}
				p.bytes.Add(-size * kib)
			}
		}
		b.update(claims[0])
	}
}

// What one claim holds does not keep others from their share, nor for ever from more than that.
func TestBudgetIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, claims := budgeted(2)
		slow, other := claims[0], claims[1]
		for range 100 {
			if !slow.gate.closed() {
				b.fetchOne(slow, 1, 100*kib)
			}
		}
		if held := slow.bytes.Load(); held < 600*kib || held > 800*kib || !b.overdrawn(slow) {
			t.Fatalf("%d KiB are held: want three quarters of the bound", held/kib)
		}
		b.fetchOne(other, 1, 100*kib)
		if other.gate.closed() || b.overdrawn(other) {
			t.Error("a claim cannot have its share")
		}
		for range 2 {
			b.fetchOne(other, 1, 100*kib)
		}
		if !other.gate.closed() {
			t.Error("two claims have more than there is")
		}
		b.update(slow)
		time.Sleep(stuckFor)
		b.update(slow)
		if other.gate.closed() || !slow.gate.closed() {
			t.Error("a claim that is stuck keeps others from what there is beside it")
		}
	})
}

// A fetch that does not come back keeps room for a moment only.
func TestBudgetOfUnansweredFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, claims := budgeted(8)
		time.Sleep(unanswered + 1)
		b.update(claims[7])
		if n := opened(claims); n != 2*firstFetches {
			t.Errorf("%d may fetch", n)
		}
		for _, p := range claims {
			b.exit(p)
		}
		if b.expected != 0 || len(b.queue)+len(b.portions) != 0 {
			t.Errorf("left: %+v", b)
		}
	})
}

// sarama asks about all partitions of a broker after each fetch, also about those that were let in while it was under way.
func TestBudgetOfAnothersFetch(t *testing.T) {
	b, claims := budgeted(8)
	b.fetchOne(claims[0], 1, 400*kib)
	b.fetchOne(claims[1], 1, 400*kib)
	claims[0].bytes.Add(-400 * kib)
	claims[1].bytes.Add(-400 * kib)
	b.update(claims[0])
	for _, p := range claims {
		b.fetched(p)
	}
	b.update(claims[0])
	if n := opened(claims); n != 1 {
		t.Errorf("%d may fetch", n)
	}
	for _, p := range claims {
		b.looked(p)
	}
	b.update(claims[0])
	if n := opened(claims); n < 2 {
		t.Error("a partition that has nothing keeps the others waiting")
	}
}

// sarama may ask once more about a partition that has just been given up: nothing is expected of it.
func TestBudgetOfAClaimThatIsGone(t *testing.T) {
	b, claims := budgeted(1)
	b.fetchOne(claims[0], 10, kib)
	b.exit(claims[0])
	claims[0].pushed.Add(kib)
	b.fetched(claims[0])
	if b.expected != 0 {
		t.Errorf("%d bytes are expected", b.expected)
	}
}

// A claim that has got all there is, and whose handlers hang with it, keeps the others from large fetches for a while only.
func TestBudgetOfAClaimThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, claims := budgeted(2)
		slow, other := claims[0], claims[1]
		slow.end = func() int64 { return 1 }
		b.fetchOne(slow, 1, 700*kib)
		if slow.gate.closed() {
			t.Fatal("the claim is paused, though it waits for nothing")
		}
		b.update(other)
		if !other.gate.closed() {
			t.Fatal("there is room for another such fetch")
		}
		for range 2 {
			time.Sleep(stuckFor)
			b.update(other)
		}
		if other.gate.closed() {
			t.Error("a claim waits for one that is stuck")
		}
	})
}
