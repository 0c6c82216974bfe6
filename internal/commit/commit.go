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
	// request whose response nobody can wait for any longer. It may be nil.
	Abort func()
	// Transact stores offsets in a transaction with the output of their records, all of it or
	// nothing, unless the error is an *Unknown. It gives up when stop is closed. nil means
	// that offsets are stored by OffsetCommit. There is then one transaction per Interval
	// unless somebody waits.
	Transact func(stop <-chan struct{}, t Transaction) error

	// These functions are called from the committer's goroutine and must be quick.
	//
	// Tried is called for each partition after each request, with nil if the commit is
	// stored. Fenced is called after the request that shows that the group has continued
	// without this member.
	Tried  func(topic string, partition int32, offset int64, err error)
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
	request overdue
	room    atomic.Int64 // for the metadata of a partition, in bytes; written by the committer's goroutine only

	urge chan struct{}
	stop chan struct{}
	done chan struct{}
}

// New starts a committer.
func New(cfg Config, session Session) *Committer {
	if cfg.Abort == nil {
		cfg.Abort = func() {}
	}
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

// due is what one request tries to store for a partition.
type due struct {
	source   *Source
	snapshot *partition.Snapshot
	text     string // the metadata
}

// gather returns what is to be stored.
func (c *Committer) gather() []due {
	dues := c.dirty()
	for i := range dues {
		d := &dues[i]
		d.snapshot, d.text = d.source.cfg.Snapshot(int(c.room.Load()))
	}
	if c.cfg.Transact != nil {
		dues = c.whole(dues)
	}
	return dues
}

func (c *Committer) dirty() []due {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	only, apart := c.apart(now)
	var dues []due
	for s := range c.sources {
		if s.retryAt.After(now) {
			continue
		}
		if apart && s.cfg.Topic != only {
			s.retryAt = now // in the next transaction
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
	// The membership first: a watermark from before a rebalance must not be sent under the
	// generation from after it, for a partition that others own by then.
	member, generation := c.session.MemberID(), c.session.GenerationID()
	dues := slices.DeleteFunc(c.gather(), func(d due) bool { return !d.source.flies(d.snapshot) })
	if len(dues) == 0 {
		return
	}
	defer c.request.begin()()
	began := time.Now()
	errs, sent, err := c.send(dues, member, generation)
	took := time.Since(began)
	c.learn(dues, errs)
	refresh := err != nil
	for _, d := range dues {
		cfg := &d.source.cfg
		o := outcome{snapshot: d.snapshot, text: d.text, generation: generation, sent: sent, responded: sent && err == nil, err: err}
		if err == nil {
			o.err = errorOf(errs, cfg.Topic, cfg.Partition)
		}
		if o.err == nil {
			c.cfg.Committed(cfg.Topic, cfg.Partition, d.snapshot.Offset, took)
		}
		attempt, confirmed := d.source.landed(o)
		switch {
		case o.err == nil:
			d.source.confirm(confirmed)
			c.cfg.Tried(cfg.Topic, cfg.Partition, d.snapshot.Offset, nil)
		case c.fenced(o.err, member, generation):
			if d.source.end(o.err) {
				cfg.Fenced(o.err)
			}
			c.cfg.Fenced(cfg.Topic, cfg.Partition, d.snapshot.Offset, o.err)
			c.cfg.Failed(cfg.Topic, cfg.Partition, d.snapshot.Offset, o.err, 0, took)
		default:
			c.cfg.Tried(cfg.Topic, cfg.Partition, d.snapshot.Offset, o.err)
			refresh = refresh || moved(o.err)
			c.cfg.Failed(cfg.Topic, cfg.Partition, d.snapshot.Offset, o.err, attempt, took)
		}
	}
	if refresh {
		// If this fails, the next attempt shows it.
		_ = c.cfg.Client.RefreshCoordinator(c.cfg.Group)
	}
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

// learn reduces the room if the broker accepts less metadata than by default
// (offset.metadata.max.bytes).
func (c *Committer) learn(dues []due, errs map[string]map[int32]sarama.KError) {
	for _, d := range dues {
		if errorOf(errs, d.source.cfg.Topic, d.source.cfg.Partition) == sarama.ErrOffsetMetadataTooLarge {
			c.room.Store(min(c.room.Load(), int64(len(d.text)-1)) / 2)
		}
	}
}

// fenced reports whether the group has continued without this member. An illegal
// generation does not prove it if the session has a newer one by now, or is about to get
// one (cooperative rebalances change it during a session).
func (c *Committer) fenced(err error, member string, generation int32) bool {
	switch {
	case errors.Is(err, sarama.ErrFencedInstancedId):
		return true
	case errors.Is(err, sarama.ErrUnknownMemberId):
		return member == c.session.MemberID()
	case errors.Is(err, sarama.ErrIllegalGeneration):
		return !c.cfg.Cooperative && generation == c.session.GenerationID()
	}
	return false
}

// responsePatience is how long a request may take while the last commit of a partition
// waits, which has only seconds. The next attempt may take twice as long.
const responsePatience = time.Second

// overdue records since when the current request has had no response.
type overdue struct {
	since atomic.Int64 // nanoseconds since the process started; 0 if nothing is under way
	cuts  atomic.Int32 // consecutive requests that were cut off
}

// processStart is long before the process began: testing/synctest's clock starts in the year 2000.
var processStart = time.Now().Add(-40 * 365 * 24 * time.Hour)

func (o *overdue) begin() (end func()) {
	cuts := o.cuts.Load()
	o.since.Store(int64(time.Since(processStart)) | 1)
	return func() {
		o.since.Store(0)
		o.cuts.CompareAndSwap(cuts, 0)
	}
}

// hurry cuts off a request that is overdue. It is called repeatedly while a last commit is awaited.
func (c *Committer) hurry() {
	now, since := int64(time.Since(processStart)), c.request.since.Load()
	if since == 0 || now-since < int64(responsePatience<<min(c.request.cuts.Load(), 4)) {
		return
	}
	if c.request.since.CompareAndSwap(since, now|1) { // only once, although several may wait
		c.request.cuts.Add(1)
		c.cfg.Abort()
	}
}
