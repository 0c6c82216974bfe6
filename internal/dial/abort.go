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
	if d.round.Err() == nil {
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
	return late(stop, func(ended <-chan struct{}) {
		abort()
		for cuts := 2; wait.For(wait.Backoff(cuts, abortPatience, mostPatience), ended); cuts++ {
			abort()
		}
	})
}

// EndAfter closes all connections a while after stop is closed, and allows none until done is called, so that what
// the caller does with a client meanwhile fails at once, however often the client tries again. done waits for the
// end of it.
func (d *Dialer) EndAfter(stop <-chan struct{}) (done func()) {
	return late(stop, func(ended <-chan struct{}) {
		d.mu.Lock()
		d.abort()
		d.mu.Unlock()
		for _, c := range d.conns() {
			_ = c.close()
		}
		<-ended
		d.mu.Lock()
		defer d.mu.Unlock()
		d.round, d.abort = context.WithCancel(d.ctx)
	})
}

// late calls do a while after stop is closed, unless done is called before. done ends do, and waits for it.
func late(stop <-chan struct{}, do func(ended <-chan struct{})) (done func()) {
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-stop:
		case <-ended:
			return
		}
		if wait.For(abortPatience, ended) {
			do(ended)
		}
	})
	return func() {
		close(ended)
		watch.Wait()
	}
}
