// Package commit stores the watermarks of a consumer group's partitions in Kafka.
//
// It sends OffsetCommit itself, over its own connection to the group's coordinator:
// sarama's session hides most failures of a commit, and on the connection that fetches, a
// commit waits behind the fetch for up to a second. There is one request at a time. It
// contains everything that is due, like a database's group commit, and its response serves
// all who wait for it.
package commit

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// Session is the membership that a commit is sent under. With cooperative rebalances both
// values change during a session.
type Session interface {
	MemberID() string
	GenerationID() int32
}

// Config of a Committer.
type Config struct {
	Client sarama.Client // not the client that fetches
	Group  string
	// InstanceID is the id of a static member; nil for a dynamic member.
	InstanceID *string
	// Interval is the longest time until a commit if nobody waits for it.
	Interval time.Duration
	// Cooperative reports that the session outlives its generation, so that an illegal
	// generation does not end it.
	Cooperative bool
	// Abort closes the client's connections; the client may open new ones. It ends a
	// request whose response nobody can wait for any longer.
	Abort func()
	// Transact stores offsets in a transaction with the output of their records, all of it or
	// nothing, unless the error is an *Unknown. It gives up when stop is closed. nil means
	// that offsets are stored by OffsetCommit. There is then one transaction per Interval
	// unless somebody waits.
	Transact func(stop <-chan struct{}, t Transaction) error

	// These functions are called from the committer's goroutine and must be quick.
	//
	// Fenced is called after the request that shows that the group has continued without this
	// member.
	Fenced func(topic string, partition int32, offset int64, err error)
	// PutBack is called when a commit without a response was found to have replaced the
	// stored offset, since it was processed after a later one. It is repaired.
	PutBack func(topic string, partition int32, found, wanted int64)
	// Committed and Failed are called for each partition, Committed before those who wait for
	// the commit continue. attempt is 1 for the first failure after a success, and 0 for the
	// last commit of a member that is fenced. took is how long the request took.
	Committed func(topic string, partition int32, offset int64, took time.Duration)
	Failed    func(topic string, partition int32, offset int64, err error, attempt int, took time.Duration)
}

// linger is how long a commit waits for handlers that are about to wait for it too. One
// request then serves many. The response to a smaller commit comes no sooner.
const linger = time.Millisecond

// Committer sends the commits for the partitions of one session. Close ends it.
type Committer struct {
	cfg     Config
	session Session
	settle  time.Duration // settleAfter, except in tests

	mu      sync.Mutex
	sources map[*Source]struct{}

	cadence *cadence
	cuts    int          // consecutive requests that were cut off; the watch's, see watch
	room    atomic.Int64 // for the metadata of a partition, in bytes; written by the committer's goroutine only

	urge chan struct{}
	stop chan struct{}
	done chan struct{}
}

// New starts a committer.
func New(cfg Config, session Session) *Committer {
	c := &Committer{
		cfg: cfg, session: session, cadence: newCadence(cfg.Interval, cfg.Transact != nil), settle: settleAfter,
		sources: map[*Source]struct{}{},
		urge:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	c.room.Store(ledger.DefaultRoom)
	go c.run()
	return c
}

// closePatience is how long a request under way at Close may still take.
const closePatience = 500 * time.Millisecond

// Close ends the committer and waits for it. Flush what is to be stored before: a request
// under way that gets no response soon is cut off.
func (c *Committer) Close() {
	close(c.stop)
	for wait.For(closePatience, c.done) {
		c.cfg.Abort()
	}
}

// Urge requests a commit now instead of at the next interval.
func (c *Committer) Urge() {
	wait.Wake(c.urge)
}

func (c *Committer) run() {
	defer close(c.done)
	ticker := time.NewTicker(c.cfg.Interval)
	defer ticker.Stop()
	next := time.NewTimer(time.Hour)
	defer next.Stop()
	look := time.NewTimer(time.Hour)
	defer look.Stop()
	for {
		select {
		case <-c.stop:
			return
		case <-c.cadence.woken:
			look.Reset(gather) // others are usually settled with it
			continue
		case <-look.C:
			if wait := c.look(); wait > 0 {
				look.Reset(wait)
				continue
			}
		case <-ticker.C:
		case <-next.C:
		case <-c.urge:
			if c.worthLingering() && !wait.For(linger, c.stop) {
				return
			}
		}
		// A request for a commit that comes from here on is served by the next one.
		select {
		case <-c.urge:
		default:
		}
		began := time.Now()
		c.commit()
		c.cadence.committed(began)
		if !c.cadence.asleep.Load() {
			look.Reset(c.cadence.rest)
		}
		c.readBack()
		if at := c.next(); !at.IsZero() {
			next.Reset(time.Until(at))
		} else {
			next.Stop()
		}
	}
}

// worthLingering reports whether more handlers may come to wait for this commit.
func (c *Committer) worthLingering() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	waiting, running := 0, 0
	for s := range c.sources {
		waiting += len(s.waiters)
		running += s.cfg.Running()
		if s.flushing {
			return false
		}
	}
	return waiting < running
}

// due is what one request stores for a partition, and what became of that.
type due struct {
	source     *Source
	snapshot   *partition.Snapshot
	text       string // the metadata
	member     string // that it is sent under
	generation int32
	sent       bool
	responded  bool
	err        error // nil if it is stored
}

// gather returns what is to be stored.
func (c *Committer) gather() []due {
	// The membership first: a watermark from before a rebalance must not be sent under the
	// generation from after it, for a partition that others own by then.
	member, generation := c.session.MemberID(), c.session.GenerationID()
	dues := c.dirty()
	for i := range dues {
		d := &dues[i]
		d.member, d.generation = member, generation
		d.snapshot, d.text = d.source.cfg.Snapshot(int(c.room.Load()))
	}
	if c.cfg.Transact != nil {
		dues = slices.DeleteFunc(dues, c.crowded)
	}
	return dues
}

func (c *Committer) dirty() []due {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	var dues []due
	for s := range c.sources {
		if s.retryAt.After(now) {
			continue
		}
		s.retryAt = time.Time{}
		if _, ok := s.dirty(); ok {
			for _, w := range s.waiters {
				w.asked = true
			}
			dues = append(dues, due{source: s})
		}
	}
	return dues
}

// next returns when to try something again or read it back, or zero if there is nothing.
func (c *Committer) next() (at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.sources {
		for _, t := range []time.Time{s.retryAt, s.open.settles} {
			if !t.IsZero() && (at.IsZero() || t.Before(at)) {
				at = t
			}
		}
	}
	return at
}

// commit sends what is due.
func (c *Committer) commit() {
	dues := slices.DeleteFunc(c.gather(), func(d due) bool { return !d.source.flies(d.snapshot) })
	if len(dues) > 0 && !c.store(dues) {
		for _, dues := range byTopic(dues) {
			c.store(dues)
		}
	}
}

// store sends a request, and passes its outcome on. It returns false, and has passed nothing on, if a transaction about
// several topics is refused for good: it is refused as a whole, perhaps because of one topic.
func (c *Committer) store(dues []due) bool {
	defer c.watch()()
	began := time.Now()
	errs, sent, err := c.send(dues)
	took := time.Since(began)
	if c.cfg.Transact != nil && !sent && lasts(err) && len(byTopic(dues)) > 1 {
		return false
	}
	refresh := err != nil
	for i, d := range dues {
		d.sent, d.responded, d.err = sent, err == nil, err
		if err == nil {
			d.err = errs[i]
		}
		if errors.Is(d.err, sarama.ErrOffsetMetadataTooLarge) {
			c.room.Store(min(c.room.Load(), int64(len(d.text)-1)) / 2) // offset.metadata.max.bytes is below its default
		}
		refresh = refresh || moved(d.err)
		c.landed(d, took)
	}
	if refresh {
		// If this fails, the next attempt shows it.
		_ = c.cfg.Client.RefreshCoordinator(c.cfg.Group)
	}
	return true
}

// landed passes on what became of a commit for one partition.
func (c *Committer) landed(d due, took time.Duration) {
	cfg := &d.source.cfg
	if d.err == nil {
		c.cfg.Committed(cfg.Topic, cfg.Partition, d.snapshot.Offset, took)
	}
	attempt, confirmed := d.source.landed(d)
	switch {
	case d.err == nil:
		d.source.confirm(confirmed)
		return
	case c.fenced(d):
		if d.source.end(d.err) {
			cfg.Fenced(d.err)
		}
		c.cfg.Fenced(cfg.Topic, cfg.Partition, d.snapshot.Offset, d.err)
		attempt = 0
	}
	c.cfg.Failed(cfg.Topic, cfg.Partition, d.snapshot.Offset, d.err, attempt, took)
}

// Abandon ends the commits of a topic's partitions, as if the group had continued without this
// member: what they would store is meaningless.
func (c *Committer) Abandon(topic string, cause error) {
	c.mu.Lock()
	sources := slices.Collect(maps.Keys(c.sources))
	c.mu.Unlock()
	for _, s := range sources {
		if s.cfg.Topic == topic && s.end(cause) {
			s.cfg.Fenced(cause)
		}
	}
}

// fenced reports whether the group has continued without this member. An illegal
// generation does not prove it if the session has a newer one by now, or is about to get
// one (cooperative rebalances change it during a session).
func (c *Committer) fenced(d due) bool {
	switch {
	case errors.Is(d.err, sarama.ErrFencedInstancedId):
		return true
	case errors.Is(d.err, sarama.ErrUnknownMemberId):
		return d.member == c.session.MemberID()
	case errors.Is(d.err, sarama.ErrIllegalGeneration):
		return !c.cfg.Cooperative && d.generation == c.session.GenerationID()
	}
	return false
}

// responsePatience is how long a request may take while the last commit of a partition
// waits, which has only seconds. The next attempt may take twice as long.
const responsePatience = time.Second

// flushing reports whether a last commit waits.
func (c *Committer) flushing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.sources {
		if s.flushing {
			return true
		}
	}
	return false
}

// watch cuts off current requests, also for the coordinator, that take too long while a last commit waits, until done is called.
func (c *Committer) watch() (done func()) {
	const look = responsePatience / 20
	ended, cut := make(chan struct{}), false
	var watch sync.WaitGroup
	watch.Go(func() {
		for waited := look; wait.For(look, ended); waited += look {
			if waited < responsePatience<<min(c.cuts, 4) || !c.flushing() {
				continue
			}
			c.cuts++
			waited, cut = 0, true
			c.cfg.Abort()
		}
	})
	return func() {
		close(ended)
		if watch.Wait(); !cut {
			c.cuts = 0
		}
	}
}
