// Package partition keeps the fate of every record of one assigned Kafka
// partition: which may be handed out next, which are with a handler, which wait
// to be delivered again, and up to which offset everything is settled.
//
// It is a data structure: no Kafka, no goroutine, no clock. Times come in as
// nanoseconds of the caller's clock, whose origin does not matter, and what the caller has to do (wake a slot, arm a timer,
// commit) goes out as [Work]. One mutex guards it all and is never held across a
// call out of this package.
//
// # Words
//
// Records are pushed in fetch order and get consecutive sequence numbers, which,
// unlike offsets, have no gaps. The window is the ring of entries from head, the
// oldest unsettled record, to tail. The watermark is the offset after the longest
// settled prefix; it follows the records that were delivered, so gaps in the
// offsets (compaction, control records) do not hold it.
//
// A lane is a queue of records that must be handled one after the other: one lane
// a partition, one a key, or none. Everything the ordering changes is which
// lane a record joins.
package partition

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// Order says which records share a lane.
type Order uint8

const (
	ByPartition Order = iota // one lane
	ByKey                    // one lane a key; a record without a key is a lane of its own
	Unordered                // no record waits for another
)

// Config of a Partition.
type Config[R any] struct {
	Order Order
	// Key answers a record's key; nil means the record has none. Only ByKey asks.
	Key func(record R) []byte
	// MaxInFlight is how many deliveries may be unfinished at once, not counting
	// the one in reserve for a record that handlers wait for.
	MaxInFlight int
	// MaxUncommitted bounds the records from the committed one to the highest
	// delivered one; 0 is no bound.
	MaxUncommitted uint64
	// Committed is false where nothing is ever committed (no consumer group):
	// the bound then counts from the watermark.
	Committed bool
	// Limit is shared by the partitions of a subscription; nil is no limit.
	Limit *Limit
	// Bytes is the sum of the sizes of unsettled records; may be nil.
	Bytes *Bytes
	// Late is set once the application settled a delivery after its handler had
	// returned: then a drain waits for unsettled deliveries too. Shared by a subscription.
	Late *atomic.Bool
	// Detach copies a record; nil where it shares its memory with no other.
	Detach func(record R) R
	// Held hands nothing out before Open.
	Held bool
	// Start is the offset of the first record that can come.
	Start int64
	// Open is what is known of records that were delivered and not settled before the
	// window began, in order of offset: they are delivered when they are due, with the
	// next attempt.
	Open []Open
	// Check returns a number by which a record is known again. Open needs it.
	Check func(record R) uint16
}

// Work is what the caller has to do after an operation, outside the lock.
type Work struct {
	Wake  int  // idle slots to wake
	Spawn int  // slots to start; they are awake
	Timer bool // the earliest redelivery changed: ask Due
	Low   bool // the mark set by ArmLow was reached
	Moved bool // the watermark moved
	Full  bool // half of MaxUncommitted is used: commit early

	granted []*Waiter // who got room under the shared limit
}

type state uint8

const (
	queued    state = iota // never delivered, or not yet admitted
	inFlight               // with a handler, unsettled
	nacked                 // nacked, its handler still runs
	pending                // the handler returned without settling
	parked                 // nacked, waits for its time
	due                    // nacked, its time has come
	rejecting              // rejected, its dead letter is not stored yet
	settled
)

type entry[R any] struct {
	offset  int64
	record  R
	lane    *lane
	next    uint64 // the next of its lane, as seq+1; 0: none
	dueAt   int64
	first   int64 // when its first delivery began; 0: not known
	size    int
	attempt int
	again   uint8 // deliveries after a nack in a drain
	state   state
	open    bool   // it is in Partition.open
	checked bool   // check is set
	check   uint16 // see Open.Check
	// Its record was pushed out of memory, was copied, was met waiting: see evict.go.
	evicted, detached, met bool
	d                      *Delivery[R] // the latest delivery while it is unsettled
}

// Partition is the window, the lanes and the watermark of one assignment of a
// partition. All methods may be called from any goroutine.
type Partition[R any] struct {
	cfg Config[R]

	mu        sync.Mutex
	ring      []entry[R] // power of two
	head      uint64     // the oldest unsettled record
	admitted  uint64     // below: in a lane; from here on: held back by MaxUncommitted
	tail      uint64
	taken     uint64 // one more than the highest delivered
	committed uint64 // below: covered by a confirmed commit
	watermark int64
	high      uint64 // one more than the highest settled

	lanes   map[string]*lane // ByKey
	only    lane             // ByPartition, Unordered
	spare   *lane            // free list
	ready   laneQueue
	nready  int // records queued in lanes that no parked record holds
	redo    []uint64
	timers  heap[redelivery]
	running deliveryList[R]
	// What a cumulative ack may settle: all records that are pending, parked or due,
	// and others that were so.
	open  heap[sequence]
	holes uint64 // no hole lies below

	inherited []Open   // Config.Open, of records that have not come yet
	known     []uint64 // records of Config.Open that wait for their first delivery here
	unsettled []Open   // at the end, see Unsettled
	changes   uint64   // see Mark
	timer     bool     // the earliest redelivery changed

	awake    int // slots that hold a delivery or look for one
	slots    int // slots started
	nrunning int
	nwaiting int // unfinished deliveries that wait for a commit
	npending int
	nreject  int // rejected ones whose letter is on its way
	naside   int // those whose letter is refused for good
	low      int // -1: not armed

	waiter  Waiter
	held    bool
	stopped bool
	until   int64 // nacked records that come due until then are part of the drain
	gaveUp  bool  // nobody takes what a stopped partition still hands out
	closed  bool
	drained chan struct{}
}

// New returns an empty window that starts at cfg.Start.
func New[R any](cfg Config[R]) *Partition[R] {
	p := &Partition[R]{cfg: cfg, ring: make([]entry[R], 64), watermark: cfg.Start, low: -1, held: cfg.Held}
	p.lanes = map[string]*lane{}
	p.inherited = cfg.Open
	return p
}

// OnGrant sets the function that is called when the shared Limit has room again.
func (p *Partition[R]) OnGrant(wake func()) { p.waiter.Wake = wake }

func (p *Partition[R]) at(seq uint64) *entry[R] {
	return &p.ring[seq&uint64(len(p.ring)-1)]
}

// Push appends a record; offsets only rise. It returns an error, and changes
// nothing, for a record that does not follow the last one.
func (p *Partition[R]) Push(offset int64, record R, size int) (Work, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return Work{}, nil
	}
	if last := p.lastOffset(); offset <= last {
		return Work{}, fmt.Errorf("offset %d follows offset %d", offset, last)
	}
	if p.tail-p.head == uint64(len(p.ring)) {
		p.grow()
	}
	*p.at(p.tail) = entry[R]{offset: offset, record: record, size: size}
	if len(p.inherited) > 0 {
		p.inherit(p.tail)
	}
	p.tail++
	if p.cfg.Bytes != nil {
		p.cfg.Bytes.Add(int64(size))
	}
	p.admit()
	return p.work(), nil
}

func (p *Partition[R]) lastOffset() int64 {
	if p.tail == p.head {
		return p.watermark - 1
	}
	return p.at(p.tail - 1).offset
}

func (p *Partition[R]) grow() {
	ring := make([]entry[R], 2*len(p.ring))
	for seq := p.head; seq != p.tail; seq++ {
		ring[seq&uint64(len(ring)-1)] = *p.at(seq)
	}
	p.ring = ring
}

// admit puts what MaxUncommitted allows into lanes.
func (p *Partition[R]) admit() {
	for p.admitted != p.tail {
		if p.cfg.MaxUncommitted > 0 && p.admitted-p.committed >= p.cfg.MaxUncommitted {
			return
		}
		p.join(p.admitted)
		p.admitted++
	}
}

// Take hands out the next deliverable record. A slot that gets none is asleep
// from then on, until Work tells to wake it.
func (p *Partition[R]) Take(d *Delivery[R]) (Work, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ok := p.take(d)
	return p.work(), ok
}

func (p *Partition[R]) take(d *Delivery[R]) bool {
	if !p.stopped && !p.held {
		if p.nrunning < p.cfg.MaxInFlight && p.ready.first != nil && p.cfg.Limit.acquire(&p.waiter) {
			if seq, ok := p.pop(); ok {
				p.deliver(d, seq)
				d.token = p.cfg.Limit != nil
				return true
			}
			p.cfg.Limit.putBack(&p.waiter)
		}
		if p.nrunning <= p.cfg.MaxInFlight && p.headTakeable() {
			p.unqueue(p.head)
			p.deliver(d, p.head)
			return true
		}
	}
	if seq, own, ok := p.takeHole(); ok {
		e := p.at(seq)
		if e.state == due {
			e.again++
			p.unqueue(seq)
		} else if e.lane.first == seq+1 { // or it was abandoned, and is in no queue
			p.unqueue(seq)
		}
		p.deliver(d, seq)
		d.token = own && p.cfg.Limit != nil
		d.last = true
		return true
	}
	p.awake--
	return false
}

// takeHole answers a hole, if there is a slot for it: of its own, with a place under
// the limit, or the one in reserve, as for any oldest record that handlers wait for.
func (p *Partition[R]) takeHole() (seq uint64, own, ok bool) {
	if seq, ok, _ = p.hole(); !ok {
		return 0, false, false
	}
	if p.nrunning < p.cfg.MaxInFlight && p.cfg.Limit.acquire(&p.waiter) {
		return seq, true, true
	}
	return seq, false, p.nrunning <= p.cfg.MaxInFlight && seq == p.head && p.headTakeable()
}

// drainTries is how often a drain hands out a nacked record again: one that fails
// each time must not hold every deploy for as long as it may take.
const drainTries = 3

// hole answers what a stopped partition still hands out: a record that is not
// settled, below one that is. Left to the next owner, it would bring all that is
// settled behind it with it once more. soon tells that there will be one: a nacked
// record comes due in time. One that fails again and again is left, and so is what
// waits for it in its lane.
func (p *Partition[R]) hole() (seq uint64, ok, soon bool) {
	if !p.stopped || p.closed || p.held || p.gaveUp {
		return 0, false, false
	}
	p.holes = max(p.holes, p.head)
	for seq = p.holes; seq < p.high && seq < p.admitted; seq++ {
		e := p.at(seq)
		switch {
		case e.state != queued && (e.state != due && e.state != parked || p.tried(e)):
			if seq == p.holes {
				p.holes++ // whatever becomes of it, it is none again before park or Abandon
			}
			continue
		case p.cfg.Order == Unordered:
		case e.lane.inFlight > 0:
			continue
		case e.lane.parkedFirst() && uint64(e.lane.parked[0]) != seq:
			continue
		}
		if e.state != parked {
			return seq, true, false
		}
		soon = true
	}
	return 0, false, soon
}

// headTakeable tells whether the oldest unsettled record may run out of turn: a
// handler waits for a commit that cannot come before it. It then needs neither a
// free slot, for there is one in reserve, nor a place under the limit, nor its
// lane, if all that runs there are handlers that wait for it.
func (p *Partition[R]) headTakeable() bool {
	if p.nwaiting == 0 || p.head == p.admitted {
		return false
	}
	e := p.at(p.head)
	if e.state != queued && e.state != due {
		return false
	}
	awaited := false
	for d := p.running.first; d != nil; d = d.next {
		if d.waiting > 0 && d.seq > p.head {
			awaited = true
		} else if p.cfg.Order != Unordered && d.lane == e.lane {
			return false
		}
	}
	return awaited
}

// tried tells that a drain does not hand a nacked record out again.
func (p *Partition[R]) tried(e *entry[R]) bool {
	return e.again == drainTries || e.dueAt > p.until
}

func (p *Partition[R]) deliver(d *Delivery[R], seq uint64) {
	e := p.at(seq)
	if e.attempt++; e.checked {
		p.changes++
	}
	e.state = inFlight
	d.evicted = e.evicted
	e.d = d
	e.lane.inFlight++
	d.seq, d.offset, d.record, d.lane, d.attempt = seq, e.offset, e.record, e.lane, int32(e.attempt)
	d.first = e.first
	d.status, d.finished, d.waiting, d.token, d.last = Pending, false, 0, false, false
	p.running.push(d)
	p.nrunning++
	if seq >= p.taken {
		p.taken = seq + 1
	}
}

// work decides what the caller must wake. Invariant: while a record can be
// handed out, a slot is looking for one or all slots are in use.
func (p *Partition[R]) work() Work {
	w := Work{Timer: p.timer}
	p.timer = false
	if p.stopped {
		p.wakeForHole(&w)
	} else if !p.held {
		p.wake(&w)
	}
	if !p.stopped {
		if p.low >= 0 && p.nready <= p.low && p.admitted == p.tail {
			p.low = -1
			w.Low = true
		}
		if m := p.cfg.MaxUncommitted; m > 0 && p.cfg.Committed && p.head > p.committed && 2*(p.taken-p.committed) >= m {
			w.Full = true
		}
	}
	if p.cfg.Limit != nil && p.awake == p.nrunning {
		w.granted = p.cfg.Limit.passOn(&p.waiter) // nobody here looks for a record
	}
	return w
}

func (p *Partition[R]) wake(w *Work) {
	looking := p.awake - p.nrunning
	n := min(p.takeable()-looking, p.cfg.MaxInFlight-p.awake)
	if n > 0 && p.cfg.Limit != nil {
		// One at a time: who takes a record wakes the next, as far as the limit goes.
		n = 0
		if looking == 0 && p.cfg.Limit.room(&p.waiter) {
			n = 1
		}
	}
	if n <= 0 {
		if looking > 0 || p.awake > p.cfg.MaxInFlight || !p.headTakeable() {
			return
		}
		n = 1
	}
	p.rouse(w, n)
}

func (p *Partition[R]) wakeForHole(w *Work) {
	if p.awake > p.nrunning || p.awake > p.cfg.MaxInFlight {
		return
	}
	seq, ok, _ := p.hole()
	if ok && (p.awake < p.cfg.MaxInFlight && p.cfg.Limit.room(&p.waiter) || seq == p.head && p.headTakeable()) {
		p.rouse(w, 1)
	}
}

func (p *Partition[R]) rouse(w *Work, n int) {
	p.awake += n
	w.Spawn = max(0, p.awake-p.slots)
	p.slots += w.Spawn
	w.Wake = n - w.Spawn
}

// takeable is how many slots would find a record now; it may count too many.
func (p *Partition[R]) takeable() int {
	if p.cfg.Order == Unordered {
		return p.only.n + len(p.redo)
	}
	return p.ready.n
}

// Poke asks for work again, after the shared limit got room.
func (p *Partition[R]) Poke() Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.work()
}

// Open begins to hand out what was Held.
func (p *Partition[R]) Open() Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = false
	return p.work()
}
