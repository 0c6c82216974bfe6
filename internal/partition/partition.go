// Package partition keeps the fate of every record of one assigned Kafka
// partition: which may be handed out next, which are with a handler, which wait
// to be delivered again, and which are settled.
//
// It is a data structure: no Kafka, no goroutine, no clock. Times are passed in as
// nanoseconds of the caller's clock, whose origin does not matter. What the caller has to
// do (wake a slot, arm a timer, commit) is returned as [Work]. One mutex guards everything. The
// functions of [Config] that are called with it only look at one record.
//
// # Words
//
// Records are pushed in fetch order and get consecutive sequence numbers, which, unlike
// offsets, have no gaps. The window is the records from head, the oldest unsettled one, to
// tail. A mark says that a record is settled. The watermark is the offset after the longest
// prefix of marked records. It follows delivered records, so gaps in the offsets
// (compaction, control records) do not hold it. A [Snapshot] is what a commit stores: the
// watermark, and the marks above it.
//
// A lane is a queue of records that are handled one after the other: one lane per
// partition, one per key, or none. The ordering only decides which lane a record joins.
package partition

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// Order says which records share a lane.
type Order uint8

const (
	ByPartition Order = iota // one lane
	ByKey                    // one lane per key; a record without a key has its own lane
	Unordered                // no record waits for another
)

// Config configures a Partition.
type Config[R any] struct {
	Order Order
	// Key returns a record's key, nil if it has none.
	Key func(record R) []byte
	// OrderKey returns the key by which ByKey orders a record, once, before it is pushed. nil
	// means Key. It is called without the lock.
	OrderKey func(record R) []byte
	// Due returns when a record may be delivered for the first time, by the caller's clock; 0
	// for at once. It may be nil.
	Due func(record R) int64
	// MaxInFlight is how many deliveries may be unfinished at once.
	MaxInFlight int
	// Careful, if it is not 0, is a lower limit until Relax. While there are records that
	// an earlier owner had in flight, the limit is 1.
	Careful int
	// MaxUncommitted limits the delivered records that no confirmed commit covers, by its
	// offset or by a mark. 0 means no limit.
	MaxUncommitted uint64
	// Committed is false if nothing is ever committed (no consumer group). MaxUncommitted
	// then counts from the watermark.
	Committed bool
	// Limit is shared by the partitions of a subscription. nil means no limit.
	Limit *Limit
	// Batches makes Collect hand out the records, not Take. It excludes a Limit.
	Batches bool
	// Bytes is the sum of the sizes of unsettled records. nil means that they are not counted.
	Bytes *Bytes
	// Late is set once the application has settled a delivery after its handler returned:
	// a drain then waits for unsettled deliveries too. It is shared by a subscription. nil means
	// that none does.
	Late *atomic.Bool
	// Detach copies a record. It is nil if records share no memory.
	Detach func(record R) R
	// Clock has the time for the ages of states. It may be coarse. nil means no ages.
	Clock *atomic.Int64
	// Unopened makes the partition hand out nothing before Open.
	Unopened bool
	// Start is the offset of the first record that can come.
	Start int64
	// Marks has the blocks of records that an earlier owner settled, and Open the other
	// records that it had delivered, both in the order of their offsets.
	Marks []ledger.Block
	Open  []Open
	// Output makes the partition hold what deliveries publish, see output.go. A snapshot is
	// then of one moment.
	Output bool
	// Fingerprint returns a number that identifies a record. Committed requires it.
	Fingerprint func(record R) uint32
}

// Work says what the caller has to do after an operation, without the lock.
//
// One is returned for each record. The compiler keeps structs of up to four fields in registers.
type Work struct {
	Wake  int32 // idle slots to wake
	Spawn int32 // slots to start; they count as awake
	Flags
	rare *rare // nil if there is none
}

// Flags are parts of Work.
type Flags uint8

const (
	Timer Flags = 1 << iota // the earliest redelivery changed: call Due
	Low                     // what ArmLow waits for has come
	Moved                   // a record was settled
	Full                    // half of MaxUncommitted was used since the last commit: commit early
	Ready                   // what Collect waits for has come
)

// Has reports whether one of the flags is set.
func (f Flags) Has(flags Flags) bool { return f&flags != 0 }

// rare is work that few operations cause.
type rare struct {
	doubted []ledger.Run
	granted []*Waiter // those who got room under the shared limit
}

// Doubted returns the offsets of marks that did not hold: their records are delivered.
func (w Work) Doubted() []ledger.Run {
	if w.rare == nil {
		return nil
	}
	return w.rare.doubted
}

type state uint8

const (
	queued     state = iota // never delivered, or not yet admitted
	unverified              // marked by an earlier owner, in a block that is not checked yet
	inFlight                // with a handler, unsettled
	nacked                  // nacked, its handler still runs
	pending                 // the handler returned without settling
	parked                  // nacked, waits for its time
	due                     // nacked, its time has come
	rejecting               // rejected, its dead letter is not stored yet
	confirming              // acked, and the handler must not run before that is stored
	delayed                 // never delivered, waits for its time
	settled
)

type phase uint8

const (
	unopened phase = iota // nothing is handed out yet
	running               // records are handed out
	draining              // nothing is handed out any more
	closed                // nothing settles any more
)

// Partition is the window, the lanes and the watermark of one assignment of a
// partition. All methods may be called from any goroutine.
//
// R is a record, H the caller's handle of a delivery.
type Partition[R, H any] struct {
	cfg Config[R]

	mu        sync.Mutex
	phase     phase
	chunks    []chunk[R, H] // ring, its length a power of two
	spares    sync.Pool     // of *[span]entry[R, H], so that a moving window allocates few
	head      uint64        // the oldest unsettled record
	front     uint64        // the oldest record without a mark
	watermark int64         // the offset before which all records are marked
	admitted  uint64        // records below are in a lane, or settled; the others are held back
	tail      uint64
	next      int64  // the offset after the last record
	taken     uint64 // one more than the highest delivered
	high      uint64 // one more than the highest that has a mark, or is known from an earlier owner

	committed uint64 // records below are covered by the last confirmed commit
	stored    int    // records from committed to admitted whose marks it has
	ahead     int    // records of earlier owners that are settled, and not admitted yet
	uncovered int    // delivered records that it did not cover
	version   uint64 // grows with whatever a commit would store
	reverts   uint64 // how often a mark was taken back
	inherited inherited

	lanes      map[string]*lane // ByKey
	only       lane             // ByPartition, Unordered
	spare      *lane            // free list
	ready      laneQueue
	nready     int // records queued in lanes whose first record is not parked, delayed or due
	redo       []uint64
	notes      map[uint64]notes // of records that are not settled
	moved      int64            // see Overview.Moved
	paused     bool             // nothing is handed out
	timers     heap[redelivery]
	running    []*Delivery[R, H] // deliveries whose handlers have not returned
	open       uint64            // no record below waits for a settlement, or after a nack
	confirming []uint64

	awake    int             // slots that hold a delivery or look for one
	slots    int             // slots started, and not spare
	unused   int             // see Spare
	waiting  bool            // handlers wait for older records, see Partition.Committed
	suspects int             // records that an earlier owner had in flight, and whose handlers have not returned since
	counts   [states + 1]int // records by state
	naside   int             // rejected records whose letters are refused for good
	out      outputs
	low      int  // set by ArmLow; -1 if not armed
	need     int  // of records, for Work.Ready; set by Collect
	called   bool // Work.Ready came since

	waiter  Waiter
	flags   Flags // what the next Work takes along
	rare    rare  // likewise
	drained chan struct{}
}

// New returns a partition with an empty window that starts at cfg.Start.
func New[H, R any](cfg Config[R]) *Partition[R, H] {
	if cfg.Clock == nil {
		cfg.Clock = new(atomic.Int64)
	}
	if cfg.OrderKey == nil {
		cfg.OrderKey = cfg.Key
	}
	p := &Partition[R, H]{
		cfg: cfg, phase: running, chunks: make([]chunk[R, H], 2), watermark: cfg.Start, next: cfg.Start, version: 1, low: -1,
		lanes: map[string]*lane{}, notes: map[uint64]notes{}, out: outputs{held: map[uint64]parcel{}}, inherited: inherited{blocks: cfg.Marks, open: cfg.Open},
		drained: make(chan struct{}),
	}
	p.moved = p.clock()
	if cfg.Unopened {
		p.phase = unopened
	}
	return p
}

// OnGrant sets the function that is called when the shared Limit has room again.
func (p *Partition[R, H]) OnGrant(wake func()) { p.waiter.Wake = wake }

// Push appends a record. It returns an error, and changes nothing, if the offset is not
// greater than the last one.
func (p *Partition[R, H]) Push(offset int64, record R, size int) (Work, error) {
	var key []byte
	if p.cfg.Order == ByKey {
		key = p.cfg.OrderKey(record)
	}
	dueAt := int64(0)
	if p.cfg.Due != nil {
		dueAt = p.cfg.Due(record)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase >= draining {
		return Work{}, nil
	}
	if offset < p.next {
		return Work{}, fmt.Errorf("offset %d follows offset %d", offset, p.next-1)
	}
	p.next = offset + 1
	seq, e := p.append()
	e.offset, e.record, e.size, e.dueAt = offset, record, size, dueAt
	p.enter(e, key)
	p.cfg.Bytes.Add(int64(size))
	if len(p.inherited.blocks)+len(p.inherited.open) > 0 {
		p.inherit(seq)
	}
	p.admit()
	return p.work(), nil
}

// admit puts records that MaxUncommitted allows into lanes.
func (p *Partition[R, H]) admit() {
	for end := p.inherited.from(p.tail); p.admitted < end && !p.full(); p.admitted++ {
		if e := p.live(p.admitted); e != nil {
			p.join(p.admitted, e)
		} else if p.ahead > 0 {
			p.ahead--
			p.stored++
		}
	}
}

// uncommitted returns how many records below one are covered by no confirmed commit.
func (p *Partition[R, H]) uncommitted(below uint64) int {
	return int(below-p.committed) - p.stored
}

func (p *Partition[R, H]) full() bool {
	return p.cfg.MaxUncommitted > 0 && p.uncommitted(p.admitted) >= int(p.cfg.MaxUncommitted)
}

// work decides what the caller must wake. Invariant: while a record can be
// handed out, a slot is looking for one or all slots are in use.
func (p *Partition[R, H]) work() Work {
	p.checkDrained()
	w := Work{Flags: p.flags}
	p.flags = 0
	if p.handsOut() {
		if p.cfg.Batches {
			if p.call() {
				w.Flags |= Ready
			}
		} else {
			w.Wake, w.Spawn = p.wake()
		}
	}
	if p.phase <= running {
		if p.low >= 0 && p.nready <= p.low && !p.blocked() {
			p.low = -1
			w.Flags |= Low
		}
		if m := int(p.cfg.MaxUncommitted); m > 0 && p.cfg.Committed && 2*(p.uncommitted(p.taken)-p.uncovered) >= m {
			w.Flags |= Full
		}
		if p.out.bytes >= mostReady {
			w.Flags |= Full
		}
	}
	if p.cfg.Limit != nil && (p.awake == len(p.running) || !p.handsOut()) { // no slot here looks for a record
		p.rare.granted = p.cfg.Limit.passOn(&p.waiter, p.rare.granted)
	}
	if len(p.rare.granted) > 0 || len(p.rare.doubted) > 0 {
		w.rare = &rare{doubted: p.rare.doubted, granted: p.rare.granted}
		p.rare = rare{}
	}
	return w
}

// blocked reports whether MaxUncommitted holds records back.
func (p *Partition[R, H]) blocked() bool { return p.admitted < p.inherited.from(p.tail) && p.full() }

// Poke returns the work after the shared limit got room.
func (p *Partition[R, H]) Poke() Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.work()
}

// Open ends Config.Unopened.
func (p *Partition[R, H]) Open() Work {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == unopened {
		p.phase = running
	}
	return p.work()
}
