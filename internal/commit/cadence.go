package commit

import (
	"sync/atomic"
	"time"
)

// What a crash repeats is what was settled since the last commit. So a commit comes the
// sooner the more was settled: after a fifth of the interval for one record, after half of
// that for two. The records that wait for a commit then grow with the square root of the
// rate, and so does the rate of commits: by default 2 a second at 1 record a second, 20 at
// 80 and more.
const (
	share = 5
	// leastPause is between the end of a commit and the next one, and restFactor how many
	// times as long as the commit took: a coordinator that is busy is asked less often. With
	// 10 ms the commits took a tenth of the rate of a handler that does nothing.
	leastPause = 50 * time.Millisecond
	restFactor = 10
	// gather is how long the first settlement waits for others, and how often is looked
	// whether there are more.
	gather = 10 * time.Millisecond
)

// cadence decides when a commit that nobody waits for is worth its cost.
type cadence struct {
	interval time.Duration // at most
	last     time.Time     // when the last commit ended
	rest     time.Duration // from then on

	asleep atomic.Bool // nothing is known to be settled since the last commit
	woken  chan struct{}
}

func newCadence(interval time.Duration) *cadence {
	c := &cadence{interval: interval, last: time.Now(), woken: make(chan struct{}, 1)}
	c.asleep.Store(true)
	return c
}

// Settled says that there may be something to commit. It is called at each settlement.
func (c *Committer) Settled() {
	if c.cadence.asleep.Load() && c.cadence.asleep.CompareAndSwap(true, false) {
		select {
		case c.cadence.woken <- struct{}{}:
		default:
		}
	}
}

// committed takes note of a commit that began at a time.
func (c *cadence) committed(began time.Time) {
	c.last = time.Now()
	c.rest = min(max(leastPause, restFactor*c.last.Sub(began)), c.interval/share)
}

// wait returns how long a commit of so many changes still has time.
func (c *cadence) wait(changes uint64) time.Duration {
	return time.Until(c.last.Add(max(c.rest, c.interval/share/time.Duration(min(changes, 1<<20)))))
}

// pending returns how many changes no commit has stored, of partitions whose commits do not fail.
func (c *Committer) pending() (changes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.sources {
		if mark := s.cfg.Mark(); s.retryAt.IsZero() && mark.Version > s.stored.Version {
			changes += mark.Version - s.stored.Version
		}
	}
	return changes
}

// look returns when to look again whether a commit is worth it, 0 if it is now. With nothing
// to commit it goes to sleep, and returns an hour.
func (c *Committer) look() time.Duration {
	changes := c.pending()
	if changes == 0 {
		c.cadence.asleep.Store(true)
		if changes = c.pending(); changes == 0 || !c.cadence.asleep.CompareAndSwap(true, false) {
			return time.Hour // or it is woken
		}
	}
	wait := c.cadence.wait(changes)
	if wait <= 0 {
		return 0
	}
	// More may be settled before that, and be worth it sooner.
	return max(min(wait, gather), time.Until(c.cadence.last.Add(c.cadence.rest)))
}
