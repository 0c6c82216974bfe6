package partition

import "sync"

// Limit limits the deliveries in flight over several partitions. Free room goes to the
// partition that has waited longest. A nil Limit does not limit.
type Limit struct {
	mu      sync.Mutex
	free    int
	waiting []*Waiter
}

// NewLimit returns a limit of n deliveries.
func NewLimit(n int) *Limit { return &Limit{free: n} }

// Waiter is a partition's place in the queue of a Limit.
type Waiter struct {
	Wake    func()
	granted int
	queued  bool
}

// Granted wakes the partitions that got room.
func (w Work) Granted() {
	if w.rare == nil {
		return
	}
	for _, g := range w.rare.granted {
		g.Wake()
	}
}

// room reports whether acquire would succeed, and queues the waiter if not.
func (l *Limit) room(w *Waiter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.has(w)
}

func (l *Limit) has(w *Waiter) bool {
	if w.granted > 0 || l.free > 0 {
		return true
	}
	if !w.queued {
		w.queued = true
		l.waiting = append(l.waiting, w)
	}
	return false
}

func (l *Limit) acquire(w *Waiter) bool {
	if l == nil {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.has(w) {
		return false
	}
	if w.granted > 0 {
		w.granted--
	} else {
		l.free--
	}
	return true
}

// release gives a place back. Here and below, who gets it is added to granted; the caller
// calls Work.Granted without its lock.
func (l *Limit) release(granted []*Waiter) []*Waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.give(granted)
}

// passOn gives back the places that a waiter was granted and does not need.
func (l *Limit) passOn(w *Waiter, granted []*Waiter) []*Waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	for ; w.granted > 0; w.granted-- {
		granted = l.give(granted)
	}
	return granted
}

func (l *Limit) give(granted []*Waiter) []*Waiter {
	if len(l.waiting) == 0 {
		l.free++
		return granted
	}
	next := l.waiting[0]
	l.waiting = l.waiting[1:]
	next.queued = false
	next.granted++
	return append(granted, next)
}
