package ackpolicy

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
)

const (
	// settledRoom is how many Settled events may wait before records wait too, and
	// eventRoom how many events may wait in all.
	settledRoom, eventRoom = 1024, 4096
	// gatherFor is how long Settled events wait for more of them before the hook is called,
	// unless there are gatherMost: to wake a goroutine for each costs more than the rest of it.
	gatherFor, gatherMost = time.Millisecond, 256
	// hookPatience is how long a record waits for a hook that does not return.
	hookPatience = 5 * time.Second
	// hookGrace is how long the end of a subscription waits for its hooks.
	hookGrace = time.Second
)

// hookCalls calls the hooks of a subscription one at a time, in the order of the events,
// from its own goroutine. So a hook may block, settle records and call Close. It delays the
// hooks behind it and, through settledRoom, records that are settled.
type hookCalls struct {
	logger  watermill.LoggerAdapter
	ending  context.Context // done when the subscription begins to end
	settled func(SettledEvent)
	gather  time.Duration

	places  atomic.Int64  // of settledRoom that are taken
	waiting atomic.Int32  // records that wait for a place
	freed   chan struct{} // to one of them: look again
	blocked atomic.Bool   // a record has waited for hookPatience
	stuck   atomic.Bool   // blocked, or events were dropped, since a hook last returned
	left    atomic.Int64  // events of the batch whose hooks have not returned
	wake    chan struct{}
	done    chan struct{} // closed when the goroutine ends

	// The goroutine's own.
	broken map[string]*outage.Outage // by hook, so that repeated failures are logged less and less often
	batch  hookQueue
	at     int // the call of the batch that is next, or running
	next   int // the Settled event of the batch that is next
	passed int // Settled events of the batch that have given their places back

	mu      sync.Mutex
	queue   hookQueue
	state   hookState
	taken   int    // the size of the batch
	current string // the hook that is running
	started bool
	closed  bool
	dropped int // events since the last log line about it
	outage  outage.Outage
}

// hookState says what the goroutine does.
type hookState uint8

const (
	calling   hookState = iota // hooks, or about to
	gathering                  // it waits for more events
	idle                       // it waits for one
)

func (s *subscription) newHookCalls(ending context.Context) *hookCalls {
	h := &hookCalls{
		logger: s.logger, ending: ending, settled: s.sub.config.Hooks.Settled, gather: gatherFor, broken: map[string]*outage.Outage{},
		freed: make(chan struct{}, 1), wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if _, ok := inMemory(&s.sub.config); ok {
		h.gather = 0 // who lets time pass expects that the hooks were called
	}
	return h
}

func (h *hookCalls) block() {
	h.blocked.Store(true)
	h.stuck.Store(true)
}

// place takes a place of settledRoom if there is one.
func (h *hookCalls) place() bool {
	if h.places.Add(1) <= settledRoom {
		return true
	}
	h.places.Add(-1)
	return false
}

func (h *hookCalls) awaitPlace() bool {
	if h.place() {
		return true
	}
	if h.blocked.Load() {
		return false
	}
	h.waiting.Add(1)
	defer h.waiting.Add(-1)
	timer := time.NewTimer(hookPatience)
	defer timer.Stop()
	for {
		if h.place() {
			h.look() // there may be another place for another record
			return true
		}
		select {
		case <-h.freed:
		case <-h.ending.Done():
			return false
		case <-timer.C:
			h.block()
			return false
		}
	}
}

// look makes a record that waits for a place look for one.
func (h *hookCalls) look() {
	select {
	case h.freed <- struct{}{}:
	default:
	}
}

// put queues a call; settled is the event if it is one of Settled.
func (h *hookCalls) put(c hookCall, settled *SettledEvent) bool {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return false
	}
	q := &h.queue
	if q.size+h.taken >= eventRoom && q.size+int(h.left.Load()) >= eventRoom {
		h.dropped++
		h.stuck.Store(true)
		name := h.current
		report, log := h.outage.Failed()
		h.mu.Unlock()
		if log {
			h.logger.Error("A hook does not return: events are dropped, and no hook is called for them",
				fmt.Errorf("%s has not returned", name), report.AddTo(watermill.LogFields{"hook": short(name)}))
		}
		return false
	}
	q.add(c, settled)
	if !h.started {
		h.started = true
		go h.run()
	}
	rouse := false
	switch {
	case h.state == idle && settled != nil && h.gather > 0:
		h.state, rouse = gathering, true
	case h.state == idle, h.state == gathering && (settled == nil || len(q.settled) >= gatherMost):
		h.state, rouse = calling, true
	}
	h.mu.Unlock()
	if rouse {
		h.rouse()
	}
	return true
}

func (h *hookCalls) rouse() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// take waits for events, and makes them the batch. It returns false if there are no more.
func (h *hookCalls) take() bool {
	empty := h.batch.emptied()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.taken, h.current = 0, ""
	for h.queue.size == 0 {
		if h.closed {
			return false
		}
		h.state = idle
		h.mu.Unlock()
		<-h.wake
		h.mu.Lock()
		if h.state == gathering {
			h.mu.Unlock()
			h.awaitMore()
			h.mu.Lock()
		}
		h.state = calling
	}
	h.batch, h.queue = h.queue, empty
	h.taken, h.at, h.next, h.passed = h.batch.size, 0, 0, 0
	h.left.Store(int64(h.taken))
	return true
}

func (h *hookCalls) awaitMore() {
	timer := time.NewTimer(h.gather)
	defer timer.Stop()
	select {
	case <-h.wake:
	case <-timer.C:
	}
}

func (h *hookCalls) run() {
	ended := false
	defer func() {
		if ended {
			close(h.done)
			return
		}
		h.returned(fmt.Errorf("%s: %w", h.batch.calls[h.at].name, errGoexit))
		go h.run() // replaces the goroutine that the hook ended
	}()
	for {
		for h.at < len(h.batch.calls) {
			if commits := h.batch.calls[h.at].commits; commits != nil {
				h.left.Add(int64(len(*commits) - 1))
				h.batch.calls = slices.Replace(h.batch.calls, h.at, h.at+1, *commits...)
			}
			name := h.batch.calls[h.at].name
			h.mu.Lock()
			h.current = name
			h.mu.Unlock()
			h.returned(guard(name, h.call, nil))
		}
		if ended = !h.take(); ended {
			return
		}
	}
}

// call calls the next hook of the batch, or Settled until one of its calls panics.
func (h *hookCalls) call() {
	c := &h.batch.calls[h.at]
	if c.settled == 0 {
		c.call(c.event)
		return
	}
	for c.settled > 0 {
		e := &h.batch.settled[h.next]
		c.settled--
		h.next++
		h.settled(*e)
		if h.next-h.passed >= gatherMost/4 || h.waiting.Load() > 0 || h.stuck.Load() {
			h.pass(c)
		}
	}
}

// pass takes note of Settled events whose hook has returned.
func (h *hookCalls) pass(c *hookCall) {
	n := int64(h.next - h.passed)
	h.passed = h.next
	h.left.Add(-n)
	if c.placed {
		h.places.Add(-n)
		if h.waiting.Load() > 0 {
			h.look()
		}
	}
	h.unstick(c.name)
}

// returned is called when call has returned, or panicked.
func (h *hookCalls) returned(err error) {
	c := &h.batch.calls[h.at]
	if c.call != nil {
		h.left.Add(-1)
		h.unstick(c.name)
	} else if h.next > h.passed {
		h.pass(c)
	}
	if c.settled == 0 {
		h.at++
	}
	if c.done != nil {
		close(c.done)
	}
	if err != nil {
		of := h.broken[c.name]
		if of == nil {
			of = &outage.Outage{}
			h.broken[c.name] = of
		}
		if report, due := of.Failed(); due {
			event := c.event
			if c.call == nil {
				event = h.batch.settled[h.next-1]
			}
			h.logger.Error("A hook failed", err, report.AddTo(watermill.LogFields{"event": fmt.Sprintf("%+v", event)}))
		}
	}
}

// unstick takes note that a hook has returned.
func (h *hookCalls) unstick(name string) {
	if !h.stuck.Load() {
		return
	}
	h.stuck.Store(false)
	h.blocked.Store(false)
	h.mu.Lock()
	dropped := h.dropped
	h.dropped = 0
	report, over := h.outage.Over()
	h.mu.Unlock()
	if over {
		h.logger.Info("The hook has returned: hooks are called again", report.AddTo(watermill.LogFields{"hook": short(name), "events_dropped": dropped}))
	}
}

// close waits until the hooks that are due have been called, for hookGrace at most and not
// beyond the deadline. The rest is called when the running hook returns.
func (h *hookCalls) close(deadline time.Time) {
	h.mu.Lock()
	h.closed = true
	started := h.started
	h.mu.Unlock()
	if !started {
		return
	}
	h.rouse()
	timer := time.NewTimer(min(hookGrace, max(0, time.Until(deadline))))
	defer timer.Stop()
	select {
	case <-h.done:
	case <-timer.C:
		h.mu.Lock()
		name, left := h.current, h.queue.size+int(h.left.Load())
		h.mu.Unlock()
		h.logger.Error("Closed without waiting for a hook that does not return", fmt.Errorf("%s has not returned", name),
			watermill.LogFields{"hook": short(name), "events_left": left})
	}
}
