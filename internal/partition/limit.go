package partition

import (
	"slices"
	"sync"
)

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
	if l == nil {
		return true
	}
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

// release returns a place, and the waiter who gets it. The caller calls Work.Granted
// without its lock.
func (l *Limit) release() *Waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.give()
}

func (l *Limit) give() *Waiter {
	if len(l.waiting) == 0 {
		l.free++
		return nil
	}
	w := l.waiting[0]
	l.waiting = l.waiting[1:]
	w.queued = false
	w.granted++
	return w
}

// putBack undoes an acquire that found no record.
func (l *Limit) putBack(w *Waiter) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w.granted++
}

// passOn gives places that their partition does not need to the next in the queue.
func (l *Limit) passOn(w *Waiter) (granted []*Waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.passAll(w)
}

func (l *Limit) passAll(w *Waiter) (granted []*Waiter) {
	for ; w.granted > 0; w.granted-- {
		if next := l.give(); next != nil {
			granted = append(granted, next)
		}
	}
	return granted
}

// LeaveLimit removes a closed partition from the queue, and gives its places to those that can
// use them.
func (p *Partition[R, H]) LeaveLimit() {
	if l := p.cfg.Limit; l != nil {
		for _, g := range l.leave(&p.waiter) {
			g.Wake()
		}
	}
}

func (l *Limit) leave(w *Waiter) (granted []*Waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = slices.DeleteFunc(l.waiting, func(q *Waiter) bool { return q == w })
	w.queued = false
	return l.passAll(w)
}
