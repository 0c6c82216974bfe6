package consumer

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/budget"
	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/letters"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

const (
	// A partition is paused with highMark records ready and resumed at lowMark.
	// Pausing beside an idle sibling costs a whole long poll, so the window is
	// large, and a claim holds back for holdBack before it pauses.
	highMark = 20000
	lowMark  = highMark / 2
	holdBack = 20 * time.Millisecond
	// pollPaused is how often a paused claim looks whether it may go on.
	pollPaused = 25 * time.Millisecond
	// evictAfter is how long a record must have to wait to be pushed out of
	// memory: reading it again costs a millisecond.
	evictAfter = 2 * time.Second
	// detachAfter is how long a record waits, once or twice that, before it is copied
	// out of its fetch; detachBytes is how much of that is done at a time.
	detachAfter = 5 * time.Second
	detachBytes = 1 << 20
	// batch is how many records are taken before other events are looked at.
	batch = 64
	// within is how many bytes of a fetch are taken before the budget is asked in the midst of it.
	within = 256 << 10
)

// Claim is one assignment of a partition: the goroutine that drains what sarama
// fetched into the window, and the slots that hand it out.
type Claim struct {
	*shared
	topic     string
	partition int32
	part      *partition.Partition[*sarama.ConsumerMessage, *Delivery]
	logger    watermill.LoggerAdapter
	portion   *budget.Portion         // of MaxBufferedBytes
	gate      *gate                   // pauses the partition
	logEnd    func() int64            // where the log ended at the last fetch
	reconnect context.CancelCauseFunc // ends the session; the next has new connections

	committer *commit.Committer // nil without a group
	topicID   sarama.Uuid       // of the topic that is read; zero: not known
	cluster   uint32            // see ledger.Ledger
	source    *commit.Source
	reader    *reread.Reader

	began       time.Time
	startOffset int64
	startStored bool       // by the group
	pausing     sync.Mutex // see Claim.pause

	ctx       context.Context
	cancel    context.CancelCauseFunc
	ended     error // why it ended; set before the partition is closed, read after
	draining  chan struct{}
	spent     chan struct{}      // closed when the partition is no longer ours
	fenced    chan struct{}      // closed when the group has gone on without us
	wake      chan struct{}      // a token each for an idle slot
	kick      chan struct{}      // spawn, timer or low mark: the claim's own goroutine looks
	looks     chan chan struct{} // so it does at what a fetch brought; see fetched
	suspected chan struct{}      // the watchdog looks whether what comes next can be decoded
	spawn     atomic.Int32
	slots     sync.WaitGroup

	letters *letters.Queue
	calls   calls
	corrupt corrupt // the watchdog's

	doubted  sync.Once
	crashes  crashes
	careful  atomic.Bool  // see crash.go
	unmarked atomic.Int64 // settled records for whose marks the last commit had no room

	taken int64 // bytes since the budget was asked
	held  held
	stuck time.Time // since when, once a record was told that it is stuck behind
}

// run drains messages until they end or done closes.
func (c *Claim) run(messages <-chan *sarama.ConsumerMessage, done, closing <-chan struct{}) {
	if !c.enter(c) {
		return
	}
	s := c.shared
	c.portion.Enter()
	s.reading(c, true)
	c.pause()
	defer s.reading(c, false)
	opening, cancel := context.WithCancel(c.ctx)
	opened := c.open(opening)
	defer opened.Wait()
	defer cancel() // first: the start may never be stored
	c.slots.Go(c.watchdog)
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	poll := time.NewTicker(pollPaused)
	poll.Stop()
	defer poll.Stop()
	detach := time.NewTicker(detachAfter)
	defer detach.Stop()
	polled := false
	for {
		if closed := c.gate.closed(); closed && !polled {
			poll.Reset(pollPaused)
			polled = true
		} else if !closed && polled {
			poll.Stop()
			polled, c.held = false, held{}
			c.goesOn()
		}
		select {
		case m, ok := <-messages:
			if !ok || !c.take(m, messages) {
				return
			}
			c.regulate(timer, done)
		case <-c.kick:
			c.serve(timer)
		case <-timer.C:
			c.do(c.part.Tick(Now()))
			c.arm(timer)
		case <-poll.C:
			c.rest()
		case looked := <-c.looks:
			c.catchUp(messages)
			close(looked)
		case <-detach.C:
			c.detach()
			c.relax()
		case <-c.fenced:
			return // ends the session, whose next one is another membership
		case <-done:
			return
		case <-closing:
			return
		}
		if c.gate.has(fullWindow) && !c.over(lowMark) {
			c.gate.mark(fullWindow, false)
		}
	}
}

// rest is what a paused claim does every now and then.
func (c *Claim) rest() {
	c.portion.Update()
	// One that waits for room may hold it itself, below what is crowded.
	if c.budget.Crowded() || c.gate.has(noRoom) {
		c.evict()
	}
	c.watch()
}

// catchUp takes what is left of the last fetch, and then decides whether there may be a next one.
func (c *Claim) catchUp(messages <-chan *sarama.ConsumerMessage) {
	for range len(messages) {
		if m, ok := <-messages; ok {
			size := c.push(m)
			c.count(m, size, size)
		}
	}
	if c.budget.Crowded() {
		c.evict()
	}
	c.portion.Looked()
}

// look has the claim's goroutine catch up, and waits for it.
func (c *Claim) look() {
	looked := make(chan struct{})
	select {
	case c.looks <- looked:
		<-looked
	case <-c.draining:
	}
}

// open begins to hand out once the start position is stored.
func (c *Claim) open(ctx context.Context) *sync.WaitGroup {
	var wg sync.WaitGroup
	if c.source != nil {
		wg.Go(func() {
			if c.source.WaitStart(ctx) == nil {
				c.do(c.part.Open())
			}
		})
	}
	return &wg
}

// take pushes a record and those behind it that are there already.
func (c *Claim) take(m *sarama.ConsumerMessage, messages <-chan *sarama.ConsumerMessage) bool {
	bytes, largest := 0, 0
	defer func() { c.count(m, bytes, largest) }()
	for n := 1; ; n++ {
		size := c.push(m)
		bytes, largest = bytes+size, max(largest, size)
		if n == batch {
			return true
		}
		select {
		case next, ok := <-messages:
			if !ok {
				return false
			}
			m = next
		default:
			return true
		}
	}
}

// count tells the budget of records that were taken, up to m.
func (c *Claim) count(m *sarama.ConsumerMessage, bytes, largest int) {
	c.portion.Took(m.Offset+1, int64(bytes), int64(largest))
	c.taken += int64(bytes)
}

// push returns the record's size.
func (c *Claim) push(m *sarama.ConsumerMessage) int {
	size := record.Size(m)
	w, err := c.part.Push(m.Offset, m, size)
	if err != nil {
		c.logger.Error("Record dropped: sarama delivered it twice or out of order", err, watermill.LogFields{"kafka_partition_offset": m.Offset})
		return 0
	}
	if w.Spawn > 0 { // we are the claim's goroutine: no need to kick ourselves
		c.start(w.Spawn)
		w.Spawn = 0
	}
	c.do(w)
	return size
}

// detach copies what has waited for long, and drops what was read ahead and is not asked for.
func (c *Claim) detach() {
	c.reader.Rest()
	for next, more := uint64(0), true; more; {
		next, more = c.part.Detach(next, detachBytes, Now()+int64(evictAfter))
	}
}

func (c *Claim) start(n int) {
	for range n {
		c.slots.Add(1)
		go c.slot()
	}
}

// serve does what a kick asked for.
func (c *Claim) serve(timer *time.Timer) {
	c.start(int(c.spawn.Swap(0)))
	c.arm(timer)
}

func (c *Claim) arm(timer *time.Timer) {
	if at, ok := c.part.Due(); ok {
		timer.Reset(time.Duration(max(0, at-Now())))
	}
}

// over reports whether the window holds more records than it should.
func (c *Claim) over(mark int) bool {
	load := c.part.Load()
	return load.Ready >= mark || load.Blocked
}

// regulate pauses the partition if its window is too full and stays so.
func (c *Claim) regulate(timer *time.Timer, done <-chan struct{}) {
	if c.budget.Crowded() {
		c.evict()
	}
	if c.taken >= within {
		c.taken = 0
		c.portion.Update()
	}
	if c.gate.has(fullWindow) || !c.over(highMark) {
		return
	}
	held := time.NewTimer(holdBack)
	defer held.Stop()
	c.part.ArmLow(highMark - highMark/8)
hold:
	for c.over(highMark) {
		select {
		case <-c.kick:
			c.serve(timer)
		case <-timer.C:
			c.do(c.part.Tick(Now()))
			c.arm(timer)
		case <-done:
			return
		case <-held.C:
			break hold
		}
	}
	if !c.over(highMark) {
		return
	}
	c.gate.mark(fullWindow, true)
	c.part.ArmLow(lowMark)
}
