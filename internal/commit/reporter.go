package commit

import (
	"slices"
	"sync"
	"time"
)

// reporter calls the hooks of commits from its own goroutine: a slow hook must not delay
// commits and those who wait for them.
type reporter struct {
	mu      sync.Mutex
	queue   []*reports // the partitions that have events, in turn
	calling *reports
	closed  bool
	wake    chan struct{}
	changed chan struct{} // closed, and replaced, after each call
	done    chan struct{}
}

// reports are the events to report of one partition.
type reports struct{ events []event }

type kind uint8

const (
	committed kind = iota
	failing
)

type event struct {
	kind kind
	call func()
}

// mostEvents is how many events of a partition wait for a slow hook. If there are more, the
// oldest of their kind are dropped: the latest offset includes the earlier ones.
const mostEvents = 16

func newReporter() *reporter {
	t := &reporter{wake: make(chan struct{}, 1), changed: make(chan struct{}), done: make(chan struct{})}
	go t.run()
	return t
}

func (t *reporter) report(of *reports, e event) {
	t.mu.Lock()
	if len(of.events) == 0 {
		t.queue = append(t.queue, of)
	} else if len(of.events) >= mostEvents {
		if i := slices.IndexFunc(of.events, func(o event) bool { return o.kind == e.kind }); i >= 0 {
			of.events = slices.Delete(of.events, i, i+1)
		} else {
			of.events = of.events[1:]
		}
	}
	of.events = append(of.events, e)
	t.mu.Unlock()
	t.rouse()
}

func (t *reporter) rouse() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *reporter) run() {
	defer close(t.done)
	for {
		call, ok, closed := t.next()
		switch {
		case ok:
			call()
		case closed:
			return
		default:
			<-t.wake
		}
	}
}

// next takes the next call from the queue; the one before it has returned.
func (t *reporter) next() (call func(), ok, closed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.calling != nil {
		t.calling = nil
		close(t.changed)
		t.changed = make(chan struct{})
	}
	if len(t.queue) == 0 {
		return nil, false, t.closed
	}
	of := t.queue[0]
	t.queue = t.queue[1:]
	call = of.events[0].call
	if of.events = of.events[1:]; len(of.events) > 0 {
		t.queue = append(t.queue, of)
	}
	t.calling = of
	return call, true, false
}

// await returns once all events of a partition were passed to their hooks, or after a while.
func (t *reporter) await(of *reports, atMost time.Duration) {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	for {
		t.mu.Lock()
		busy, changed := len(of.events) > 0 || t.calling == of, t.changed
		t.mu.Unlock()
		if !busy {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			return
		}
	}
}

// close ends the goroutine and waits a short time for it: a hook may block, or may have
// called the Close that leads here.
func (t *reporter) close(atMost time.Duration) {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.rouse()
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-t.done:
	case <-timer.C:
	}
}
