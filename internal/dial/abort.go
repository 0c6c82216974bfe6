package dial

import (
	"context"
	"sync"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// Abort is Break, and also ends connection attempts.
func (d *Dialer) Abort() {
	d.mu.Lock()
	if d.ctx.Err() == nil {
		d.abort()
		d.round, d.abort = context.WithCancel(d.ctx)
	}
	d.mu.Unlock()
	d.Break()
}

// abortPatience is how long a response may take that nobody needs any more: brokers usually
// respond within milliseconds, and the connection has other users. Each time it was not enough it
// doubles, up to mostPatience: a broker that is slower than that responds to none of them otherwise.
const (
	abortPatience = 250 * time.Millisecond
	mostPatience  = time.Second
)

// AbortLate calls abort repeatedly, from a while after stop is closed until done is called, so that what
// the caller does with a client meanwhile is cut. done waits for the end of it.
func AbortLate(stop <-chan struct{}, abort func()) (done func()) {
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-stop:
		case <-ended:
			return
		}
		for cuts := 1; wait.For(wait.Backoff(cuts, abortPatience, mostPatience), ended); cuts++ {
			abort()
		}
	})
	return func() {
		close(ended)
		watch.Wait()
	}
}
