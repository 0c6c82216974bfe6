package dial

import (
	"context"
	"sync"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// Abort is Break, and ends also what is being connected.
func (d *Dialer) Abort() {
	d.mu.Lock()
	if d.ctx.Err() == nil {
		d.abort()
		d.round, d.abort = context.WithCancel(d.ctx)
	}
	d.mu.Unlock()
	d.Break()
}

// abortPatience is how long an answer may still come that nobody waits for: a broker
// gives it within milliseconds, and the connection has other users.
const abortPatience = 250 * time.Millisecond

// AbortLate aborts again and again, from a while after stop is closed until done is
// called: what the caller does meanwhile with a client is then cut short. done waits.
func (d *Dialer) AbortLate(stop <-chan struct{}) (done func()) {
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-stop:
		case <-ended:
			return
		}
		for wait.For(abortPatience, ended) {
			d.Abort()
		}
	})
	return func() {
		close(ended)
		watch.Wait()
	}
}
