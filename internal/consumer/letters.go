package consumer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// letters stores the dead letters of a claim, one after the other, each until it
// is stored or the claim is closed. What it could not store stays unsettled:
// the next owner delivers the record again.
type letters struct {
	mu     sync.Mutex
	queue  []letter
	busy   bool // a goroutine works on the queue
	closed bool
	idle   sync.WaitGroup
}

type letter struct {
	d    *Delivery
	send func(ctx context.Context) error
}

// Letter has a rejected delivery's dead letter stored and then releases it. The
// verdict must have held it.
func (d *Delivery) Letter(send func(ctx context.Context) error) {
	c := d.claim
	l := &c.letters
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.queue = append(l.queue, letter{d, send})
	if !l.busy {
		l.busy = true
		l.idle.Go(c.storeLetters)
	}
}

// next answers the letter to store; without one the goroutine that asks ends.
func (l *letters) next() (letter, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 || l.closed {
		l.busy = false
		return letter{}, false
	}
	first := l.queue[0]
	l.queue[0] = letter{}
	l.queue = l.queue[1:]
	return first, true
}

func (c *Claim) storeLetters() {
	for {
		l, ok := c.letters.next()
		if !ok {
			return
		}
		for attempt := 1; ; attempt++ {
			err := l.send(c.ctx) // not the handler's context, which may have ended
			if err == nil {
				l.d.Release()
				break
			}
			if errors.Is(err, reread.ErrGone) { // there is nothing to put into a letter any more
				c.logger.Error("Dead letter not stored, nor will it be: its record was pushed out of memory, and is gone", err,
					watermill.LogFields{"kafka_partition_offset": l.d.Offset()})
				l.d.Release()
				break
			}
			if c.ctx.Err() != nil {
				return
			}
			delay := wait.Backoff(attempt, 100*time.Millisecond, 30*time.Second)
			c.logger.Error("Dead letter not stored, its record is kept and nothing is committed past it", err, watermill.LogFields{
				"kafka_partition_offset": l.d.Offset(), "attempt": attempt, "retry_in": delay.String(),
			})
			if !wait.For(delay, c.ctx.Done()) {
				return
			}
		}
	}
}

// close waits for the goroutine, whose claim's context has ended.
func (l *letters) close() {
	l.mu.Lock()
	l.closed = true
	l.queue = nil
	l.mu.Unlock()
	l.idle.Wait()
}
