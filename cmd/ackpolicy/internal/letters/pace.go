package letters

import (
	"context"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// pace holds letters back to a rate.
type pace struct {
	rate float64 // a second; 0: none
	next time.Time
}

// batch is how many letters may go at once: a quarter of a second's, so that they come evenly.
func (p *pace) batch(most int) int {
	if p.rate == 0 {
		return most
	}
	return max(1, min(most, int(p.rate/4)))
}

// wait waits until n more letters may go.
func (p *pace) wait(ctx context.Context, n int) error {
	if p.rate == 0 {
		return context.Cause(ctx)
	}
	now := time.Now()
	if p.next.IsZero() {
		p.next = now
	}
	if late := now.Add(-time.Second); p.next.Before(late) {
		p.next = late // no more than that is made up for
	}
	if !wait.For(p.next.Sub(now), ctx.Done()) {
		return context.Cause(ctx)
	}
	p.next = p.next.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
	return context.Cause(ctx)
}
