package consumer

import (
	"context"
	"sync"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// interruptAfter is how long the last requests of a session may continue.
const interruptAfter = 500 * time.Millisecond

// interrupter ends requests that nobody needs any more: sarama waits for their responses
// whatever the context says, before it rejoins the group or leaves it. A JoinGroup may be held
// up by the group's other members, a fetch by a leader that is silent.
type interrupter struct {
	s    *Subscription
	ctx  context.Context // of the membership, or of reading without a group
	over func()          // ends the watch under way
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

// between watches the membership while no session is under way.
func (i *interrupter) between() {
	i.watch(i.ctx, func() time.Duration { return interruptAfter / 10 })
}

// session watches a session that ends with ctx. A broker without records responds after MaxWaitTime.
func (i *interrupter) session(ctx context.Context) {
	i.watch(ctx, func() time.Duration {
		poll := i.s.cfg.Sarama.Consumer.MaxWaitTime
		if i.s.closingNow() { // there is a bound
			poll = min(poll, interruptAfter)
		}
		return interruptAfter + poll
	})
}

// watch interrupts what is under way after each pause, once ctx has ended and no claim is left. It replaces the last watch.
func (i *interrupter) watch(ctx context.Context, pause func() time.Duration) {
	i.stop()
	end := make(chan struct{})
	watched := after(ctx, func() {
		awaitClaims(i.s.base, end)
		for wait.For(pause(), end) {
			i.s.dialer.Break()
			i.s.side.Break()
		}
	})
	i.over = func() {
		close(end)
		watched()
	}
}

// stop ends the watch under way.
func (i *interrupter) stop() {
	if i.over != nil {
		i.over()
	}
	i.over = nil
}
