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

	watches    sync.WaitGroup
	ended      chan struct{} // closed by stop
	sessionEnd chan struct{} // closed at the end of the session
}

// interrupt begins to watch a membership, or a reader without a group, that ends with ctx.
func (s *Subscription) interrupt(ctx context.Context) *interrupter {
	i := &interrupter{s: s, ended: make(chan struct{})}
	i.watches.Go(func() {
		select {
		case <-ctx.Done():
		case <-i.ended:
			return
		}
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
	i.watches.Go(func() {
		select {
		case <-ctx.Done():
		case <-end:
			return
		}
		awaitClaims(i.s.shared, end)
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
	i.session.Store(false)
}

// stop follows the end of the membership.
func (i *interrupter) stop() {
	if i.session.Load() { // a Tracer kept its end from us
		i.end()
	}
	close(i.ended)
	i.watches.Wait()
}

func (i *interrupter) interrupt() {
	i.s.dialer.Break()
	i.s.sideDialer.Break()
}
