package consumer

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// interruptAfter is how long the last requests of a session may continue.
const interruptAfter = 500 * time.Millisecond

// interrupter ends requests that nobody needs any more: sarama waits for their responses
// whatever the context says, before it rejoins the group or leaves it. A JoinGroup may be held
// up by the group's other members, a fetch by a leader that is silent.
type interrupter struct {
	s       *Subscription
	session atomic.Bool // one is under way

	ended      chan struct{} // closed by stop
	stopped    func()        // waits for the watch of the membership
	sessionEnd chan struct{} // closed at the end of the session
	left       func()        // waits for the watch of the session
}

// after calls f in a goroutine once ctx ends. The caller must call done, which waits for f if it runs
// and otherwise keeps it from running. Until ctx ends this takes no goroutine.
func after(ctx context.Context, f func()) (done func()) {
	var run sync.WaitGroup
	run.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer run.Done()
		f()
	})
	return func() {
		if stop() {
			run.Done()
		}
		run.Wait()
	}
}

// interrupt begins to watch a membership, or a reader without a group, that ends with ctx.
func (s *Subscription) interrupt(ctx context.Context) *interrupter {
	i := &interrupter{s: s, ended: make(chan struct{})}
	i.stopped = after(ctx, func() {
		for wait.For(interruptAfter/10, i.ended) {
			if !i.session.Load() {
				i.interrupt()
			}
		}
	})
	return i
}

// begin watches a session. It ends with ctx, and then its claims do: the last
// fetches have their time to return.
func (i *interrupter) begin(ctx context.Context) {
	end := make(chan struct{})
	i.sessionEnd = end
	i.session.Store(true)
	i.left = after(ctx, func() {
		awaitClaims(i.s.base, end)
		for wait.For(i.patience(), end) {
			i.interrupt()
		}
	})
}

// patience is how long the last fetches may take: a broker without records responds after MaxWaitTime.
func (i *interrupter) patience() time.Duration {
	poll := i.s.cfg.Sarama.Consumer.MaxWaitTime
	if i.s.closingNow() { // there is a bound
		poll = min(poll, interruptAfter)
	}
	return interruptAfter + poll
}

// end follows the end of the session.
func (i *interrupter) end() {
	close(i.sessionEnd)
	i.left()
	i.session.Store(false)
}

// stop follows the end of the membership.
func (i *interrupter) stop() {
	if i.session.Load() { // a Tracer kept its end from us
		i.end()
	}
	close(i.ended)
	i.stopped()
}

func (i *interrupter) interrupt() {
	i.s.dialer.Break()
	i.s.side.Break()
}
