package consumer

import (
	"sync"
	"sync/atomic"
)

// offers interrupts slots that wait for the application to take their messages.
type offers struct {
	mu      sync.Mutex
	over    bool                          // guarded by mu
	current atomic.Pointer[chan struct{}] // replaced under mu
}

func newOffers() *offers {
	o := &offers{}
	current := make(chan struct{})
	o.current.Store(&current)
	return o
}

// interrupted returns a channel that is closed by the next look, or by end.
func (o *offers) interrupted() <-chan struct{} { return *o.current.Load() }

// look makes all slots look whether their records are still to be delivered.
func (o *offers) look() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.over {
		next := make(chan struct{})
		close(*o.current.Swap(&next))
	}
}

// end interrupts all slots, and those that come later.
func (o *offers) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.over {
		o.over = true
		close(*o.current.Load())
	}
}
