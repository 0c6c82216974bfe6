package ackpolicy

import (
	"context"
	"fmt"
	"strings"
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
	// hookPatience is how long a record waits for a hook that does not return.
	hookPatience = 5 * time.Second
	// hookGrace is how long the end of a subscription waits for its hooks.
	hookGrace = time.Second
)

// hookCalls calls the hooks of a subscription one at a time, in the order of the events,
// from its own goroutine. So a hook may block, settle records and call Close. It delays the
// hooks behind it and, through settledRoom, records that are settled.
type hookCalls struct {
	logger watermill.LoggerAdapter
	ending context.Context // done when the subscription begins to end

	room    chan struct{} // a token for each Settled event that waits
	blocked atomic.Bool   // a record has waited for hookPatience
	wake    chan struct{}
	done    chan struct{} // closed when the goroutine ends

	broken map[string]*outage.Outage // by hook, so that repeated failures are logged less and less often. Used by the goroutine only

	mu      sync.Mutex
	queue   []hookCall
	current string // the hook that is running
	started bool
	closed  bool
	dropped int // events since the last log line about it
	outage  outage.Outage
}

type hookCall struct {
	name  string // "Hooks.Settled"
	event any
	call  func(event any)
	token bool          // it holds a token of room
	done  chan struct{} // closed when the hook has returned; nil if nobody waits for it
}

func newHookCalls(ending context.Context, logger watermill.LoggerAdapter) *hookCalls {
	return &hookCalls{
		logger: logger, ending: ending, broken: map[string]*outage.Outage{},
		room: make(chan struct{}, settledRoom), wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// tell queues the call of a hook if it is set. It does not wait.
func tell[E any](s *subscription, name string, hook func(E), event E) {
	if hook != nil {
		s.hooks.put(hookCall{name: name, event: event, call: calling(hook)})
	}
}

// calling returns a call of a hook. It is the event that is kept while it waits, once.
func calling[E any](hook func(E)) func(any) {
	return func(event any) { hook(event.(E)) }
}

// tellSettled waits for room, so that a Settled hook that is slower than the records slows
// them down. If a hook does not return at all, only the first record waits for it.
func (s *subscription) tellSettled(event SettledEvent) {
	hook := s.sub.config.Hooks.Settled
	c := hookCall{name: "Hooks.Settled", event: event, call: calling(hook)}
	c.token = s.hooks.awaitRoom()
	s.hooks.put(c)
}

// tellAndWait waits until the hook has returned. It is used by goroutines that only report
// commits or store letters. So reports of commits wait where only the latest are kept, and
// a record is not committed before DeadLettered has returned.
func tellAndWait[E any](s *subscription, name string, hook func(E), event E) {
	if hook == nil {
		return
	}
	h, done := s.hooks, make(chan struct{})
	if !h.put(hookCall{name: name, event: event, call: calling(hook), done: done}) || h.blocked.Load() {
		return
	}
	timer := time.NewTimer(hookPatience)
	defer timer.Stop()
	select {
	case <-done:
	case <-h.ending.Done():
	case <-timer.C:
		h.blocked.Store(true)
	}
}

// short is a hook's name in log fields.
func short(name string) string { return strings.TrimPrefix(name, "Hooks.") }

func (h *hookCalls) awaitRoom() (token bool) {
	select {
	case h.room <- struct{}{}:
		return true
	default:
	}
	if h.blocked.Load() {
		return false
	}
	timer := time.NewTimer(hookPatience)
	defer timer.Stop()
	select {
	case h.room <- struct{}{}:
		return true
	case <-h.ending.Done():
	case <-timer.C:
		h.blocked.Store(true)
	}
	return false
}

func (h *hookCalls) put(c hookCall) bool {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return false
	}
	if len(h.queue) >= eventRoom {
		h.dropped++
		name := h.current
		report, log := h.outage.Failed()
		h.mu.Unlock()
		if log {
			h.logger.Error("A hook does not return: events are dropped, and no hook is called for them",
				fmt.Errorf("%s has not returned", name), report.AddTo(watermill.LogFields{"hook": short(name)}))
		}
		return false
	}
	h.queue = append(h.queue, c)
	if !h.started {
		h.started = true
		go h.run()
	}
	h.mu.Unlock()
	h.rouse()
	return true
}

func (h *hookCalls) rouse() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// next waits for the next event. It returns false if there are no more.
func (h *hookCalls) next() (hookCall, bool) {
	for {
		h.mu.Lock()
		if len(h.queue) > 0 {
			c := h.queue[0]
			h.queue[0] = hookCall{}
			h.queue = h.queue[1:]
			h.current = c.name
			h.mu.Unlock()
			return c, true
		}
		h.queue, h.current = nil, ""
		closed := h.closed
		h.mu.Unlock()
		if closed {
			return hookCall{}, false
		}
		<-h.wake
	}
}

func (h *hookCalls) run() {
	var c hookCall
	ok := true
	defer func() {
		if !ok {
			close(h.done)
			return
		}
		h.returned(c, fmt.Errorf("%s: %w", c.name, errGoexit))
		go h.run() // replaces the goroutine that the hook ended
	}()
	for {
		if c, ok = h.next(); !ok {
			return
		}
		h.returned(c, guard(c.name, func() { c.call(c.event) }, nil))
	}
}

func (h *hookCalls) returned(c hookCall, err error) {
	h.blocked.Store(false)
	if c.token {
		<-h.room
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
			h.logger.Error("A hook failed", err, report.AddTo(watermill.LogFields{"event": fmt.Sprintf("%+v", c.event)}))
		}
	}
	h.mu.Lock()
	dropped := h.dropped
	h.dropped = 0
	report, over := h.outage.Over()
	h.mu.Unlock()
	if over {
		h.logger.Info("The hook has returned: hooks are called again", report.AddTo(watermill.LogFields{"hook": short(c.name), "events_dropped": dropped}))
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
		name, left := h.current, len(h.queue)
		h.mu.Unlock()
		h.logger.Error("Closed without waiting for a hook that does not return", fmt.Errorf("%s has not returned", name),
			watermill.LogFields{"hook": short(name), "events_left": left})
	}
}
