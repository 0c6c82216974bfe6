// Package budget shares a bound of bytes among the claims of a subscription, before they
// fetch. sarama decompresses a whole fetch, and asks for the next one as soon as it has
// handed out the last record: to pause a partition once its records are too many would be
// late by two fetches for each partition.
//
// Half of the bound is divided evenly. What a claim holds, and what its next fetch may
// bring, always has room in its share of that. The other half goes to whoever needs more,
// in turn.
package budget

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

const (
	// firstFetches is how many partitions may fetch at once before anybody knows what a
	// fetch brings: half of the bound is divided among them.
	firstFetches = 2
	// assumedRecord is taken for the size of a record before there was one.
	assumedRecord = 1 << 20
	// patience is how long room is kept for a fetch that does not come back: its broker may be gone.
	patience = 10 * time.Second
	// stuckFor is how long what a claim holds stays the same until others no longer wait for it.
	stuckFor = 10 * time.Second
)

// Budget is the bound of a subscription.
type Budget struct {
	bound int64
	held  atomic.Int64 // the bytes of all claims' unsettled records

	mu       sync.Mutex
	portions []*Portion // of all claims
	queue    []*Portion // those that wait for room, the longest first
	expected int64      // what the next fetches of those that may fetch bring
	fetch    int64      // the largest fetch lately; 0: there was none
	record   int64      // the largest record
}

// New returns a budget of so many bytes.
func New(bound int64) *Budget { return &Budget{bound: bound} }

// Crowded reports whether what waits for long has to go: half of the bound is for what
// can be handed out.
func (b *Budget) Crowded() bool { return b.held.Load() > b.bound/2 }

// Held returns how many bytes the unsettled records of all claims take.
func (b *Budget) Held() int64 { return b.held.Load() }

// Scarce reports whether a claim waits for room.
func (b *Budget) Scarce() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue) > 0
}

// Portion is a claim's part of the budget. A claim that has not entered may not fetch.
type Portion struct {
	Bytes partition.Bytes // of its unsettled records

	budget  *Budget
	room    func(bool)
	end     func() int64
	next    atomic.Int64 // the offset that its next fetch begins at
	took    atomic.Int64 // bytes, ever
	largest atomic.Int64 // record

	// Guarded by budget.mu.
	counted  int64     // bytes of earlier fetches
	fetch    int64     // the largest fetch lately; 0: there was none
	expected int64     // its part of budget.expected
	asked    time.Time // when its latest fetch began, at most
	idle     bool      // the last fetch brought nothing
	fetches  int       // since it was let in
	shut     bool
	still    int64     // bytes, at since
	since    time.Time // zero: not looked at since it was let in
	stuck    bool
}

// Portion returns a part for a claim that begins at the offset next. end returns where the
// log ended at its last fetch. room is called when the claim may fetch and when it may not
// any more: with a lock held, so it must only take note.
func (b *Budget) Portion(next int64, end func() int64, room func(bool)) *Portion {
	p := &Portion{budget: b, room: room, end: end}
	p.Bytes.Total = &b.held
	p.next.Store(next)
	return p
}

// Enter has the claim take part. It may fetch once there is room.
func (p *Portion) Enter() {
	b := p.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.portions = append(b.portions, p)
	p.shut = true
	b.queue = append(b.queue, p)
	b.admit()
}

// Exit follows the end of the claim.
func (p *Portion) Exit() {
	b := p.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	is := func(q *Portion) bool { return q == p }
	b.portions = slices.DeleteFunc(b.portions, is)
	b.queue = slices.DeleteFunc(b.queue, is)
	b.expect(p, 0)
	p.shut = true // for what sarama still asks
	b.admit()
}

// Took takes note of records that the claim took: their bytes, the largest of them, and
// the offset behind the last one.
func (p *Portion) Took(next, bytes, largest int64) {
	p.next.Store(next)
	p.took.Add(bytes)
	if largest > p.largest.Load() {
		p.largest.Store(largest)
	}
}

// Fetched ends a fetch of a partition that was not paused. It reports whether the claim has
// to take, before the next one, what came, and then to call Looked: it is the first fetch,
// or room is scarce.
func (p *Portion) Fetched() (look bool) {
	b := p.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.shut {
		return false
	}
	if p.fetch == 0 && p.end() > p.next.Load() || !b.roomy(0) {
		return true
	}
	b.measure(p)
	b.expect(p, b.nextFetch(p))
	return false
}

// Looked is Update after a fetch of which everything was taken.
func (p *Portion) Looked() {
	b := p.budget
	b.mu.Lock()
	b.measure(p)
	b.mu.Unlock()
	p.Update()
}

func (b *Budget) measure(p *Portion) {
	took := p.took.Load()
	last := took - p.counted
	p.counted = took
	// The first of these calls may belong to a fetch that was under way when the claim was let in.
	p.fetches++
	p.asked, p.idle = time.Now(), last == 0 && p.fetches > 1
	if last > 0 {
		p.fetch = max(last, p.fetch-p.fetch/4)
		b.fetch = max(last, b.fetch-b.fetch/16)
		b.record = max(b.record, p.largest.Load())
	}
}

// nextFetch returns what a claim's next fetch may bring.
func (b *Budget) nextFetch(p *Portion) int64 {
	lag := p.end() - p.next.Load()
	if (lag <= 0 || p.idle) && b.held.Load() <= b.bound {
		return 0 // it waits for what is produced, and gets that bit by bit
	}
	n, record := p.fetch, b.record
	if n == 0 {
		n = b.fetch
	}
	if n == 0 {
		n = b.bound / 2 / firstFetches
	}
	if record == 0 {
		record = assumedRecord
	}
	if lag > 0 && lag < n/record {
		n = lag * record
	}
	return n
}

func (b *Budget) expect(p *Portion, bytes int64) {
	b.expected += bytes - p.expected
	p.expected = bytes
}

// roomy reports whether nobody needs to care, also after a fetch of so many bytes more.
func (b *Budget) roomy(more int64) bool {
	return len(b.queue) == 0 && b.held.Load()+b.expected+more <= b.bound/2
}

// Update decides whether the claim may fetch, and then whether those that wait may.
func (p *Portion) Update() {
	b := p.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if !p.shut {
		next := b.nextFetch(p)
		if b.expect(p, 0); b.roomy(next) || b.fits(p, next) {
			b.expect(p, next)
		} else {
			p.shut = true
			b.queue = append(b.queue, p)
			p.room(false)
		}
	}
	b.admit()
}

// watch looks whether a claim is stuck with what it holds, whether it waits for room or
// there is nothing more to fetch.
func (p *Portion) watch(now time.Time) {
	if bytes := p.Bytes.Load(); bytes != p.still || p.since.IsZero() {
		p.still, p.since, p.stuck = bytes, now, false
	} else {
		p.stuck = bytes > 0 && now.Sub(p.since) >= stuckFor
	}
}

// admit lets those fetch that fit: what is in a claim's own share does not wait for others.
func (b *Budget) admit() {
	if len(b.queue) == 0 {
		return
	}
	now := time.Now()
	for _, p := range b.portions {
		p.watch(now)
		if p.expected > 0 && now.Sub(p.asked) > patience {
			b.expect(p, 0)
		}
	}
	share, turn := b.share(), true
	b.queue = slices.DeleteFunc(b.queue, func(p *Portion) bool {
		next := b.nextFetch(p)
		if b.fetch > 0 && p.Bytes.Load()+next <= share {
			// its own
		} else if !turn || !b.fits(p, next) {
			// A large fetch has its turn, too: nobody overtakes who holds no more than a share.
			turn = turn && p.Bytes.Load() > share
			return false
		}
		p.shut, p.stuck, p.since = false, false, time.Time{}
		p.counted, p.asked, p.fetches = p.took.Load(), now, 0
		b.expect(p, next)
		p.room(true)
		return true
	})
}

// Overdrawn reports whether the claim waits for room and holds more than its share.
func (p *Portion) Overdrawn() bool {
	b := p.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	return p.shut && p.Bytes.Load() > b.share()
}

func (b *Budget) share() int64 { return b.bound / 2 / int64(max(1, len(b.portions))) }

// fits reports whether a fetch of so many bytes fits into a claim's share, or with it into
// what is for all.
func (b *Budget) fits(p *Portion, next int64) bool {
	if b.fetch == 0 {
		return b.expected+next <= b.bound/2
	}
	share := b.share()
	own := p.Bytes.Load() + next - share
	if own <= 0 {
		return true
	}
	var others, stuck int64
	for _, q := range b.portions {
		switch over := q.Bytes.Load() + q.expected - share; {
		case q == p || over <= 0:
		case q.stuck:
			stuck += over
		default:
			others += over
		}
	}
	// Records that nobody settles must not stop everybody else: as much again may come beside them.
	others += max(0, stuck-b.bound)
	return others+own <= b.bound/2 || others == 0 && p.Bytes.Load() == 0
}
