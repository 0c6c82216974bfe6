package budget

import (
	"testing"
	"testing/synctest"
	"time"
)

const kib = 1 << 10

// claim is one of a partition with lag.
type claim struct {
	*Portion
	open bool // it may fetch
}

// budgeted are claims under a bound of a mebibyte.
func budgeted(n int) (*Budget, []*claim) {
	b := New(1024 * kib)
	claims := make([]*claim, n)
	for i := range claims {
		c := &claim{}
		c.Portion = b.Portion(0, func() int64 { return 1000 }, func(room bool) { c.open = room })
		claims[i] = c
		c.Enter()
	}
	return b, claims
}

// fetchOne is what a claim does when a fetch brought records of a size.
func (c *claim) fetchOne(records, size int64) {
	c.Took(c.next.Load()+records, records*size, size)
	c.Bytes.Add(records * size)
	c.Looked()
}

// opened counts those that may fetch.
func opened(claims []*claim) (n int) {
	for _, p := range claims {
		if p.open {
			n++
		}
	}
	return n
}

// Before anybody knows what a fetch brings, few fetch at once; then as many as fit.
func TestBudgetLearns(t *testing.T) {
	_, claims := budgeted(8)
	if n := opened(claims); n != firstFetches {
		t.Fatalf("%d may fetch at first", n)
	}
	claims[0].fetchOne(10, kib)
	if n := opened(claims); n != len(claims) {
		t.Errorf("%d may fetch, though fetches are small", n)
	}
}

// Large fetches come one at a time, and each claim has its turn.
func TestBudgetTurns(t *testing.T) {
	const size = 400
	b, claims := budgeted(8)
	for _, p := range claims[:firstFetches] {
		p.fetchOne(1, size*kib)
	}
	had := map[*claim]bool{}
	for _, p := range claims[:firstFetches] {
		p.Bytes.Add(-size * kib)
		had[p] = true
	}
	claims[0].Update()
	for len(had) < len(claims) {
		if n := opened(claims); n != 1 {
			t.Fatalf("%d may fetch", n)
		}
		for _, p := range claims {
			if p.open {
				if had[p] {
					t.Fatal("a claim has its second turn before all had their first")
				}
				had[p] = true
				p.fetchOne(1, size*kib)
				if b.held.Load() > b.bound {
					t.Fatalf("%d bytes are held", b.held.Load())
				}
				p.Bytes.Add(-size * kib)
			}
		}
		claims[0].Update()
	}
}

// What one claim holds does not keep others from their share, nor forever from more than that.
func TestBudgetIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, claims := budgeted(2)
		slow, other := claims[0], claims[1]
		for range 100 {
			if slow.open {
				slow.fetchOne(1, 100*kib)
			}
		}
		if held := slow.Bytes.Load(); held < 600*kib || held > 800*kib || !slow.Overdrawn() {
			t.Fatalf("%d KiB are held: want three quarters of the bound", held/kib)
		}
		other.fetchOne(1, 100*kib)
		if !other.open || other.Overdrawn() {
			t.Error("a claim cannot have its share")
		}
		for range 2 {
			other.fetchOne(1, 100*kib)
		}
		if other.open {
			t.Error("two claims have more than there is")
		}
		slow.Update()
		time.Sleep(stuckFor)
		slow.Update()
		if !other.open || slow.open {
			t.Error("a claim that is stuck keeps others from what there is beside it")
		}
	})
}

// A fetch that does not come back keeps room for a moment only.
func TestBudgetOfFetchesWithoutResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, claims := budgeted(8)
		time.Sleep(patience + 1)
		claims[7].Update()
		if n := opened(claims); n != 2*firstFetches {
			t.Errorf("%d may fetch", n)
		}
		for _, p := range claims {
			p.Exit()
		}
		if b.expected != 0 || len(b.queue)+len(b.portions) != 0 {
			t.Errorf("left: %+v", b)
		}
	})
}

// sarama asks about all partitions of a broker after each fetch, also about those that were let in while it was under way.
func TestBudgetOfAnothersFetch(t *testing.T) {
	_, claims := budgeted(8)
	claims[0].fetchOne(1, 400*kib)
	claims[1].fetchOne(1, 400*kib)
	claims[0].Bytes.Add(-400 * kib)
	claims[1].Bytes.Add(-400 * kib)
	claims[0].Update()
	for _, p := range claims {
		p.Fetched()
	}
	claims[0].Update()
	if n := opened(claims); n != 1 {
		t.Errorf("%d may fetch", n)
	}
	for _, p := range claims {
		p.Looked()
	}
	claims[0].Update()
	if n := opened(claims); n < 2 {
		t.Error("a partition that has nothing keeps the others waiting")
	}
}

// sarama may ask once more about a partition that has just been given up: nothing is expected of it.
func TestBudgetOfAClaimThatIsGone(t *testing.T) {
	b, claims := budgeted(1)
	claims[0].fetchOne(10, kib)
	claims[0].Exit()
	claims[0].Took(11, kib, kib)
	claims[0].Fetched()
	if b.expected != 0 {
		t.Errorf("%d bytes are expected", b.expected)
	}
}

// A claim that has got all there is, and whose handlers hang with it, keeps the others from large fetches for a while only.
func TestBudgetOfAClaimThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, claims := budgeted(2)
		slow, other := claims[0], claims[1]
		slow.end = func() int64 { return 1 }
		slow.fetchOne(1, 700*kib)
		if !slow.open {
			t.Fatal("the claim is paused, though it waits for nothing")
		}
		other.Update()
		if other.open {
			t.Fatal("there is room for another such fetch")
		}
		for range 2 {
			time.Sleep(stuckFor)
			other.Update()
		}
		if !other.open {
			t.Error("a claim waits for one that is stuck")
		}
	})
}
