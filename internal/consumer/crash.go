package consumer

import (
	"errors"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// A record whose handler ends the process (out of memory, a fatal signal, os.Exit) comes again
// at the next start, and ends that process too. No handler's verdict counts these deaths, so
// the ledger does: an assignment that did not end with a drain leaves one that says so. After
// two such ends in quick succession, records are handed out in small groups, each named in a
// commit before. If the process dies again, its group is known, and the next owner hands these
// records out one by one. How often a record was alone when the process died is counted, since
// the process may have been killed from outside. Together with the death of the group these
// make MaxDeliveries.

const (
	// crashWindow is the longest time between two deaths that count as consecutive.
	crashWindow = 5 * time.Minute
	// carefulAfter is how many consecutive deaths make the next owner careful. It then hands out
	// carefulGroup records at once.
	carefulAfter = 2
	carefulGroup = 8
	// calm is how long an owner stays careful.
	calm = time.Minute
)

// ErrDied is the reason of a reject of a record whose handler ended the process.
var ErrDied = errors.New("ackpolicy: the process died while it handled the record")

// crashes describes the deaths of a claim's predecessors.
type crashes struct {
	deaths  int       // consecutive
	since   time.Time // the beginning of this assignment
	culprit int64     // the offset of a record to be rejected, if tries is not 0
	tries   int       // how often it was delivered
}

// inheritCrashes counts the deaths before this assignment. l is the stored ledger.
func inheritCrashes(l *ledger.Ledger, maxDeliveries int) crashes {
	c := crashes{since: time.Now()}
	if maxDeliveries == 0 || l.Clean {
		return c
	}
	c.deaths = 1
	if l.Crashes > 0 && c.since.Sub(l.CrashedAt) < crashWindow {
		c.deaths += l.Crashes
	}
	if c.deaths >= carefulAfter {
		for _, o := range l.Open {
			if o.InFlight && o.Alone >= max(2, maxDeliveries-1) {
				c.culprit, c.tries = o.Offset, o.Attempts
			}
		}
	}
	return c
}

// write adds to a ledger what the next owner has to know.
func (c *crashes) write(l *ledger.Ledger, careful, clean bool) {
	l.Clean = clean
	if !clean && (c.deaths == 1 && time.Since(c.since) < crashWindow || careful) {
		l.Crashes, l.CrashedAt = c.deaths, c.since
	}
}

// relax ends the care once the process has lived long enough.
func (c *Claim) relax() {
	if c.careful.Load() && time.Since(c.crashes.since) > calm && c.part.Relax() {
		c.careful.Store(false)
		c.logger.Info("Records are handed out normally again: the process has stayed alive", watermill.LogFields{"lived_for": calm.String()})
		c.do(c.part.Poke())
	}
}

// quarantine separates records that may end the process from those of other partitions, so
// that a record that is alone when the process dies must be the cause.
type quarantine struct {
	mu      sync.Mutex
	running int
	waiting int // for being alone
	alone   bool
	changed wait.Changes // somebody has left
}

// enter returns true once a record may be handled, alone or not, or false if stop was closed before.
func (q *quarantine) enter(alone bool, stop <-chan struct{}) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if alone {
		q.waiting++
		defer func() { q.waiting-- }()
	}
	for q.alone || alone && q.running > 0 || !alone && q.waiting > 0 {
		changed := q.changed.Next()
		q.mu.Unlock()
		select {
		case <-changed:
			q.mu.Lock()
		case <-stop:
			q.mu.Lock()
			q.changed.Tell()
			return false
		}
	}
	q.running++
	q.alone = alone
	return true
}

func (q *quarantine) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running--
	q.alone = false
	q.changed.Tell()
}
