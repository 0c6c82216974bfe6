package consumer

import (
	"sync"
	"sync/atomic"
)

// Reasons to pause a partition.
type reason = uint32

const (
	fullWindow  reason = 1 << iota // enough records wait
	noRoom                         // MaxBufferedBytes
	undecodable                    // a batch makes the responses of its broker fail
	byHand                         // Subscriber.Pause
)

var reasons = [...]string{
	"its window is full, as many records wait as should", "MaxBufferedBytes is reached",
	"a batch of records cannot be decoded", "paused by hand",
}

// gate pauses a partition while there is a reason.
type gate struct {
	pause, resume func() // sarama's

	mu  sync.Mutex // held while it changes
	why atomic.Uint32
}

// newGate returns a gate that is closed until there is room. sarama remembers whether an
// earlier assignment has paused the partition.
func newGate(pause, resume func()) *gate {
	g := &gate{pause: pause, resume: resume}
	g.mark(noRoom, true)
	return g
}

// mark sets or removes a reason. It calls sarama's Pause and Resume, which only set a flag.
func (g *gate) mark(r reason, on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.why.Load()
	after := before &^ r
	if on {
		after |= r
	}
	g.why.Store(after)
	switch {
	case before == 0 && after != 0:
		g.pause()
	case before != 0 && after == 0:
		g.resume()
	}
}

func (g *gate) closed() bool { return g.why.Load() != 0 }

func (g *gate) has(r reason) bool { return g.why.Load()&r != 0 }

// reasons returns why the partition is paused.
func (g *gate) reasons() (why []string) {
	for i, text := range reasons {
		if g.has(1 << i) {
			why = append(why, text)
		}
	}
	return why
}
