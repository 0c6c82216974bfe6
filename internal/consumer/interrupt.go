package consumer

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// interruptAfter is how long requests that nobody needs any more may go on.
const interruptAfter = 500 * time.Millisecond

// interrupter ends the requests that a membership, or a reader without a group, still
// waits for once it has to end and its claims are gone: a JoinGroup that the group's other members
// hold up, a fetch from a leader that is silent. sarama waits for their answers
// whatever the context says, and leaves the group only afterwards.
type interrupter struct {
	consumed chan struct{}
	session  atomic.Bool // claims may come and go: the last fetches have their time to return
	running  sync.WaitGroup
}

// interrupt begins to watch for the end of ctx.
func (s *Subscription) interrupt(ctx context.Context) *interrupter {
	i := &interrupter{consumed: make(chan struct{})}
	i.running.Go(func() {
		select {
		case <-ctx.Done():
		case <-i.consumed:
			return
		}
		awaitClaims(s.shared, i.consumed)
		for {
			pause := interruptAfter / 10
			if i.session.Load() {
				pause = interruptAfter + s.cfg.Sarama.Consumer.MaxWaitTime
			}
			if !wait.For(pause, i.consumed) {
				return
			}
			s.dialer.Break()
			s.sideDialer.Break()
		}
	})
	return i
}

// stop follows the end of what may be interrupted.
func (i *interrupter) stop() {
	close(i.consumed)
	i.running.Wait()
}
