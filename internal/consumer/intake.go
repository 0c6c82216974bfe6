package consumer

import (
	"context"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
)

const (
	// A partition is paused with highMark records ready and resumed at lowMark. Pausing beside
	// an idle partition costs a whole long poll, so the window is large, and a claim waits for
	// holdBack before it pauses.
	highMark = 20000
	lowMark  = highMark / 2
	holdBack = 20 * time.Millisecond
	// pollPaused is how often a paused claim looks whether it may continue.
	pollPaused = 25 * time.Millisecond
	// evictAfter is how long a record must have to wait to be pushed out of
	// memory: reading it again costs a millisecond.
	evictAfter = 2 * time.Second
	// A record that has waited for detachAfter, up to twice, is copied out of its fetch.
	// detachBytes is how much is copied at a time.
	detachAfter = 5 * time.Second
	detachBytes = 1 << 20
	// batch is how many records are taken before other events are handled.
	batch = 64
	// within is how many bytes of a fetch are taken before the budget is asked again.
	within = 256 << 10
)

// intake is the goroutine of a claim: it moves what sarama fetched into the window, starts
// slots, and does what is due by time. Only this goroutine uses its fields.
type intake struct {
	*Claim
	messages <-chan *sarama.ConsumerMessage
	taken    int64 // bytes since the budget was last asked

	holding bool        // the window is too full: nothing is taken until hold fires, or there is room
	hold    *time.Timer // runs while holding
	polling bool        // the partition is paused
	poll    *time.Ticker
	due     *time.Timer // fires when the next redelivery is due

	blocker      blocker
	blockedSince time.Time // since when; zero if no record was reported as blocking
}

// run takes messages until they end, or done or closing closes.
func (c *Claim) run(messages <-chan *sarama.ConsumerMessage, done, closing <-chan struct{}) {
	c.cfg.Events.Assigned(c.topic, c.partition, c.from.offset)
	if !c.enter(c) {
		return
	}
	defer c.stopped(c)
	c.health.works(committing, c.place) // the commits of an earlier assignment are not retried any more
	c.obey()
	defer c.open()()
	if c.cfg.Memory == nil {
		c.slots.Go(c.watchdog)
	}
	in := &intake{Claim: c, messages: messages, hold: time.NewTimer(time.Hour), poll: time.NewTicker(time.Hour), due: time.NewTimer(time.Hour)}
	in.hold.Stop()
	in.poll.Stop()
	in.due.Stop()
	defer in.hold.Stop()
	defer in.poll.Stop()
	defer in.due.Stop()
	old := time.NewTicker(detachAfter)
	defer old.Stop()
	for {
		in.follow()
		select {
		case m, ok := <-in.incoming():
			if !ok || !in.take(m) {
				return
			}
			in.regulate()
		case <-in.hold.C:
			in.pauseFull()
		case <-c.kick:
			in.serve()
		case <-in.due.C:
			in.do(in.part.Tick(Now()))
			in.arm()
		case <-in.poll.C:
			in.rest()
		case looked := <-c.looks:
			in.catchUp()
			close(looked)
		case <-old.C:
			c.detach()
			c.relax()
			c.endSpare()
		case <-c.fenced:
			return // this ends the session; the next one is another membership
		case <-done:
			return
		case <-closing:
			return
		}
	}
}

// open starts handing out once the start position is stored, or returns when stop is closed.
func (c *Claim) open() (stop func()) {
	if c.source == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(c.ctx)
	var wait sync.WaitGroup
	wait.Go(func() {
		if c.source.WaitStart(ctx) == nil {
			c.do(c.part.Open())
		}
	})
	return func() {
		cancel()
		wait.Wait()
	}
}

// follow checks, after each event, whether the window has room again and whether the partition
// is paused.
func (in *intake) follow() {
	if in.holding && !in.over(highMark) {
		in.holding = false
		in.hold.Stop()
	}
	if in.gate.has(fullWindow) && !in.over(lowMark) {
		in.gate.mark(fullWindow, false)
	}
	switch paused := in.gate.closed(); {
	case paused == in.polling:
	case paused:
		in.polling = true
		in.poll.Reset(pollPaused)
	default:
		in.polling, in.blocker = false, blocker{}
		in.poll.Stop()
		in.continues()
	}
}

// incoming returns the channel of the next record, or nil if none is taken now.
func (in *intake) incoming() <-chan *sarama.ConsumerMessage {
	if in.holding {
		return nil
	}
	return in.messages
}

// take pushes a record and those behind it that have arrived. It returns false at the end of
// the messages.
func (in *intake) take(m *sarama.ConsumerMessage) bool {
	bytes, largest := 0, 0
	defer func() { in.count(m, bytes, largest) }()
	for n := 1; ; n++ {
		size := in.push(m)
		bytes, largest = bytes+size, max(largest, size)
		if n == batch {
			return true
		}
		select {
		case next, ok := <-in.messages:
			if !ok {
				return false
			}
			m = next
		default:
			return true
		}
	}
}

// push pushes a record and returns its size.
func (in *intake) push(m *sarama.ConsumerMessage) int {
	size := record.Size(m)
	w, err := in.part.Push(m.Offset, m, size)
	if err != nil {
		in.logger.Error("Record dropped: sarama delivered it twice or out of order", err, watermill.LogFields{"kafka_partition_offset": m.Offset})
		return 0
	}
	if w.Spawn > 0 { // this is the goroutine that a kick would wake
		in.start(int(w.Spawn))
		w.Spawn = 0
	}
	in.do(w)
	return size
}

// count reports the records taken up to m to the budget.
func (in *intake) count(m *sarama.ConsumerMessage, bytes, largest int) {
	in.portion.Took(m.Offset+1, int64(bytes), int64(largest))
	in.taken += int64(bytes)
}

// regulate checks, after records were taken, whether memory is short, and holds back if the
// window is too full.
func (in *intake) regulate() {
	if in.budget.Crowded() {
		in.resources.evict()
	}
	if in.taken >= within {
		in.taken = 0
		in.portion.Update()
	}
	if !in.gate.has(fullWindow) && in.over(highMark) {
		in.holding = true
		in.hold.Reset(holdBack)
		in.part.ArmLow(highMark - highMark/8)
	}
}

// pauseFull pauses the partition: holding back did not help. What was fetched is still taken,
// or the other partitions of the broker would wait.
func (in *intake) pauseFull() {
	in.holding = false
	if in.over(highMark) {
		in.gate.mark(fullWindow, true)
		in.part.ArmLow(lowMark)
	}
}

// over reports whether the window holds more records than it should.
func (in *intake) over(mark int) bool {
	load := in.part.Load()
	return load.Ready >= mark || load.Blocked
}

// serve does what a kick requested.
func (in *intake) serve() {
	in.start(int(in.spawn.Swap(0)))
	in.arm()
}

func (in *intake) start(n int) {
	for range n {
		in.slots.Add(1)
		go in.slot()
	}
}

func (in *intake) arm() {
	if at, ok := in.part.Due(); ok {
		in.due.Reset(time.Duration(max(0, at-Now())))
	}
}

// rest is called at intervals while the claim is paused.
func (in *intake) rest() {
	in.portion.Update()
	// A claim that waits for room may be using it itself, below the crowded level.
	if in.budget.Crowded() || in.gate.has(noRoom) {
		in.resources.evict()
	}
	in.watch()
}

// look makes the goroutine of the claim catch up, and waits for it.
func (c *Claim) look() {
	looked := make(chan struct{})
	select {
	case c.looks <- looked:
		<-looked
	case <-c.draining:
	}
}

// catchUp takes the rest of the last fetch, and then decides whether there may be another one.
func (in *intake) catchUp() {
	for range len(in.messages) {
		if m, ok := <-in.messages; ok {
			size := in.push(m)
			in.count(m, size, size)
		}
	}
	if in.budget.Crowded() {
		in.resources.evict()
	}
	in.portion.Looked()
}

// detach copies records that have waited for long, and drops what was read ahead and not needed.
func (c *Claim) detach() {
	c.reader.Rest()
	for next, more := uint64(0), true; more; {
		next, more = c.part.Detach(next, detachBytes, Now()+int64(evictAfter))
	}
}
