package consumer

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// pace spaces the deliveries of a subscription evenly in time. Slots wait for their turn in
// the order in which they come, whatever their partition.
type pace struct {
	interval atomic.Int64  // between two deliveries; 0: there is no limit
	turn     chan struct{} // has one value; whoever took it is next

	mu   sync.Mutex
	next int64 // when the next delivery may begin, by Now; guarded by mu

	changed wait.Changes // those that wait have to look whether they still have to
}

// paceSlack is how late a delivery may be, because of its timer, for the next one to be on
// time. So there are no bursts but of what is due in as much time.
const paceSlack = int64(10 * time.Millisecond)

func newPace() *pace {
	p := &pace{turn: make(chan struct{}, 1)}
	p.turn <- struct{}{}
	return p
}

// set changes the limit to so many deliveries per second; 0 means no limit.
func (p *pace) set(perSecond float64) {
	interval := int64(0)
	if perSecond > 0 {
		interval = int64(max(1, min(float64(time.Second)/perSecond, math.MaxInt64/4)))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.interval.Store(interval)
	p.next = min(p.next, Now()+interval)
	p.changed.Tell()
}

// take begins a delivery, and returns 0, or how long that must wait.
func (p *pace) take() (left time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := Now()
	if now < p.next {
		return time.Duration(p.next - now)
	}
	p.next = max(p.next, now-paceSlack) + p.interval.Load()
	return 0
}

// wait returns when a delivery may begin, or need not wait any more because it is decided. It
// returns false if stop is closed before.
func (p *pace) wait(stop <-chan struct{}, d *Delivery) bool {
	return p.interval.Load() == 0 || p.queue(stop, d)
}

func (p *pace) queue(stop <-chan struct{}, d *Delivery) bool {
	turn := p.turn
	defer func() {
		if turn == nil {
			p.turn <- struct{}{}
		}
	}()
	for {
		changed := p.changed.Next()
		if p.interval.Load() == 0 || d.decided() {
			return true
		}
		var due <-chan time.Time
		if turn == nil {
			left := p.take()
			if left <= 0 {
				return true
			}
			due = time.After(left)
		}
		select {
		case <-turn:
			turn = nil
		case <-due:
		case <-changed:
		case <-stop:
			return false
		}
	}
}
