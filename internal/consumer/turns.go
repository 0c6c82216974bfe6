package consumer

import (
	"sync"
	"time"
)

// turns has the partitions of a broker begin one after the other. sarama fetches a partition
// as soon as it has subscribed to it, and only then can it be paused: if all partitions of an
// assignment began at once, one fetch could bring many of them, whatever MaxBufferedBytes is.
type turns struct {
	mu       sync.Mutex
	ended    <-chan struct{}         // closed at the end of the session
	brokers  map[int32]chan struct{} // whoever has its token in there has the broker's turn
	starting map[place]*turn         // partitions that sarama begins; nil: it has not had its turn yet
}

// turn is a broker's turn that a partition has.
type turn struct {
	broker chan struct{} // has its token
	late   *time.Timer
}

// turnPatience is how long a partition has the turn at most. A Tracer may keep its claim from us.
const turnPatience = time.Second

// session begins a session that ends when ended is closed.
func (t *turns) session(ended <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended, t.brokers, t.starting = ended, map[int32]chan struct{}{}, map[place]*turn{}
}

// start is called when sarama begins a partition.
func (t *turns) start(at place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, starts := t.starting[at]; !starts {
		t.starting[at] = nil
	}
}

// wait is called before sarama subscribes to a partition, and then before each fetch. The first
// time it waits for the broker's turn, or the end of the session.
func (t *turns) wait(at place, broker int32) {
	t.mu.Lock()
	had, starts := t.starting[at]
	tokens := t.brokers[broker]
	if starts && tokens == nil {
		tokens = make(chan struct{}, 1)
		t.brokers[broker] = tokens
	}
	ended := t.ended
	t.mu.Unlock()
	if !starts || had != nil {
		return
	}
	select {
	case tokens <- struct{}{}:
	case <-ended:
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if had, starts := t.starting[at]; !starts || had != nil {
		<-tokens
		return
	}
	own := &turn{broker: tokens}
	own.late = time.AfterFunc(turnPatience, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.starting[at] == own {
			t.end(at)
		}
	})
	t.starting[at] = own
}

// started ends the turn of a partition that is paused, or could not be begun.
func (t *turns) started(at place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end(at)
}

// end ends a turn. The caller holds mu.
func (t *turns) end(at place) {
	if own := t.starting[at]; own != nil {
		own.late.Stop()
		<-own.broker // has the token: this does not block
	}
	delete(t.starting, at)
}
