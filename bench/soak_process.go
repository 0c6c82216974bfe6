package main

import (
	"context"
	"sync"
	"time"
)

// disturb restarts members, one at a time, or two at once, until ctx ends.
func (s *soak) disturb(ctx context.Context, every time.Duration) {
	for {
		if !pause(ctx, time.Duration(s.random.ExpFloat64()*float64(every))) {
			return
		}
		n := 1 + s.random.IntN(2)*s.random.IntN(2)
		var group sync.WaitGroup
		for _, i := range s.random.Perm(len(s.members))[:min(n, len(s.members)-1)] {
			p, kill := s.members[i], s.kills && s.random.IntN(3) == 0
			away := time.Duration(s.random.IntN(3)*s.random.IntN(2000)) * time.Millisecond
			group.Go(func() {
				if kill {
					s.abort(p.kill())
				} else {
					s.abort(s.stop(p))
				}
				pause(ctx, away)
				s.abort(p.start())
			})
		}
		group.Wait()
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (s *soak) stop(p *member) error {
	if err := p.stop(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restarts++
	return nil
}
