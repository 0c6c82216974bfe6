package consumer

import "sync"

// turns has the partitions of a broker begin one after the other. sarama fetches a partition
// as soon as it has subscribed to it, and only then can it be paused: if all partitions of an
// assignment began at once, one fetch could bring many of them, whatever MaxBufferedBytes is.
type turns struct {
	mu       sync.Mutex
	ended    <-chan struct{}         // closed at the end of the session
	brokers  map[int32]chan struct{} // whoever has its token in there has the broker's turn
	starting map[place]chan struct{} // partitions that sarama begins: their broker's, once they have the turn
}

// session begins a session that ends when ended is closed.
func (t *turns) session(ended <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended, t.brokers, t.starting = ended, map[int32]chan struct{}{}, map[place]chan struct{}{}
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
	turn := t.brokers[broker]
	if starts && turn == nil {
		turn = make(chan struct{}, 1)
		t.brokers[broker] = turn
	}
	ended := t.ended
	t.mu.Unlock()
	if !starts || had != nil {
		return
	}
	select {
	case turn <- struct{}{}:
	case <-ended:
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if had, starts := t.starting[at]; starts && had == nil {
		t.starting[at] = turn
	} else {
		<-turn
	}
}

// started ends the turn of a partition that is paused, or could not be begun.
func (t *turns) started(at place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if turn := t.starting[at]; turn != nil {
		<-turn // has a token: this does not block
	}
	delete(t.starting, at)
}
