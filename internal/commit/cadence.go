package commit

import (
	"sync/atomic"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// A crash repeats what was settled since the last commit. So a commit is sent the sooner
// the more was settled: after a fifth of the interval for one record, after half of that
// for two. The number of records that wait for a commit then grows with the square root of
// the rate, and so does the rate of commits: by default 2 per second at 1 record per
// second, 20 at 80 and above.
const (
	share = 5
	// leastPause is the shortest pause after a commit. restFactor is how many times as long
	// as the commit the pause is, so that a busy coordinator gets fewer commits. With a
	// pause of 10 ms, commits took a tenth of the throughput of a handler that does nothing.
	leastPause = 50 * time.Millisecond
	restFactor = 10
	// gather is how long the first settlement waits for others, and the interval at which
	// the cadence looks for more.
	gather = 10 * time.Millisecond
)

// cadence decides when a commit is worth its cost if nobody waits for it.
type cadence struct {
	interval time.Duration // the longest time without a commit
	share    int           // share; 1 with transactions, which come once per interval
	last     time.Time     // when the last commit ended
	rest     time.Duration // the pause after it

	asleep atomic.Bool // nothing is known to be settled since the last commit
	woken  chan struct{}
}

func newCadence(interval time.Duration, transactions bool) *cadence {
	c := &cadence{interval: interval, share: share, last: time.Now(), woken: make(chan struct{}, 1)}
	if transactions {
		c.share = 1
	}
	c.asleep.Store(true)
	return c
}

// Settled is called at each settlement: there may be something to commit.
func (c *Committer) Settled() {
	if c.cadence.asleep.Load() && c.cadence.asleep.CompareAndSwap(true, false) {
		wait.Wake(c.cadence.woken)
	}
}

// committed records a commit and when it began.
func (c *cadence) committed(began time.Time) {
	c.last = time.Now()
	if c.share == 1 {
		c.rest = max(0, c.interval-c.last.Sub(began))
		return
	}
	c.rest = min(max(leastPause, restFactor*c.last.Sub(began)), c.interval/share)
}

// wait returns how long a commit of that many changes may still wait.
func (c *cadence) wait(changes uint64) time.Duration {
	return time.Until(c.last.Add(max(c.rest, c.interval/time.Duration(c.share)/time.Duration(min(changes, 1<<20)))))
}

// pending returns the number of changes that are not stored, of partitions whose commits do not fail.
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

// look returns when to look again, or 0 if a commit is worth its cost now. If there is
// nothing to commit it goes to sleep and returns an hour.
func (c *Committer) look() time.Duration {
	changes := c.pending()
	if changes == 0 {
		c.cadence.asleep.Store(true)
		if changes = c.pending(); changes == 0 || !c.cadence.asleep.CompareAndSwap(true, false) {
			return time.Hour // unless it is woken before
		}
	}
	wait := c.cadence.wait(changes)
	if wait <= 0 {
		return 0
	}
	// If more is settled before that, a commit is worth its cost sooner.
	return max(min(wait, gather), time.Until(c.cadence.last.Add(c.cadence.rest)))
}
