package commit

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// SourceConfig configures a Source.
type SourceConfig struct {
	Topic     string
	Partition int32
	// Mark returns what could be committed now. Running returns the number of running handlers.
	Mark    func() partition.Mark
	Running func() int
	// Snapshot returns what to store, and its metadata of at most room bytes.
	Snapshot func(room int) (*partition.Snapshot, string)
	// Reverted reports whether something that a snapshot says was taken back since.
	Reverted func(*partition.Snapshot) bool
	// Confirmed is called with what the broker has stored, and no earlier commit can replace
	// any more, and whether it lacks, because there was no room, a record that somebody waits
	// for.
	Confirmed func(s *partition.Snapshot, left bool)
	// Fenced is called when the group has continued without this member.
	Fenced func(error)
	// Crowded is called when a transaction would need more metadata than there is room for.
	Crowded func()
	// Stored is false if the start position has to be committed first.
	Stored bool
}

// Source is one partition of a committer, from the start of its claim to its end.
type Source struct {
	cfg SourceConfig
	c   *Committer

	// Guarded by the committer's lock.
	has      bool           // a commit of this assignment, or the start position, is stored
	stored   partition.Mark // as of the last response
	text     string         // its metadata
	open     open           // requests that may still replace it
	unsure   *confirmation  // what is to be confirmed once none can
	flushing bool           // a last commit waits
	draining error          // the cause of the drain; nil before it
	sealed   error          // the cause; set when nothing more can be confirmed
	closed   error
	failure  error // of the last commit; nil if it was confirmed
	attempts int   // consecutive failed attempts
	retryAt  time.Time
	waiters  []*waiter
}

// Stored is what is known of a source's last commits.
type Stored struct {
	Known  bool // a commit is stored, at Offset
	Offset int64
	// Metadata is how many bytes the ledger beside it takes, of Room.
	Metadata, Room int
	Err            error // why the last commit is not stored; nil: it is
}

// Stored returns what is stored.
func (s *Source) Stored() Stored {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return Stored{Known: s.has, Offset: s.stored.Offset, Metadata: len(s.text), Room: int(s.c.room.Load()), Err: s.failure}
}

// confirmation is what Confirmed is called with.
type confirmation struct {
	snapshot *partition.Snapshot
	left     bool
}

// confirm calls Confirmed, unless there is nothing to confirm.
func (s *Source) confirm(c *confirmation) {
	if c != nil {
		s.cfg.Confirmed(c.snapshot, c.left)
	}
}

// sureNow returns what can be confirmed now.
func (s *Source) sureNow() *confirmation {
	if s.open.count > 0 {
		return nil
	}
	c := s.unsure
	s.unsure = nil
	return c
}

// flies records that a commit is about to be sent. It returns false if something that the
// commit says was taken back since.
func (s *Source) flies(snapshot *partition.Snapshot) bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.closed != nil || s.cfg.Reverted(snapshot) {
		s.c.Urge()
		return false
	}
	for _, w := range s.waiters {
		w.covered(underWay, snapshot)
	}
	return true
}

// landed records the result of the commit under way and serves those who wait for it, in
// one critical section: between the two, the commit would look like one that was never
// sent. It returns the number of consecutive failed attempts, and what is confirmed.
func (s *Source) landed(d due) (attempt int, confirmed *confirmation) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.failure = d.err
	if d.err == nil {
		s.attempts, s.retryAt = 0, time.Time{}
		s.has, s.stored, s.text = true, d.snapshot.Mark, d.text
		s.open.responded(d.generation, s.c.settle)
		left := false
		for _, w := range s.waiters {
			w.reach &^= underWay
			w.covered(stored, d.snapshot)
			w.left = w.asked && w.kind == forRecord && w.reach&stored == 0
			left = left || w.left
		}
		s.serveStored()
		s.unsure = &confirmation{d.snapshot, left}
		return 0, s.sureNow()
	}
	lost := d.sent && !(d.responded && refused(d.err))
	for _, w := range s.waiters {
		w.failed(lost)
	}
	if d.sent && !d.responded {
		s.open.add(d)
	}
	s.attempts++
	s.retryAt = time.Now().Add(pause(s.attempts, d.err))
	s.endHopeless()
	return s.attempts, nil
}

// endHopeless ends the waits of a drain for a commit that will be refused again.
func (s *Source) endHopeless() {
	err := s.hopeless()
	if err == nil || s.draining == nil {
		return
	}
	err = fmt.Errorf("the commit is refused, and would be refused again: %w", err)
	s.serve(func(w *waiter) (error, bool) {
		if w.kind == forFlush {
			return err, true
		}
		return w.giveUp(fmt.Errorf("%w: %w", s.draining, err)), true
	})
}

// hopeless returns the error of the last commit if it will be refused again. A broker that
// has just started may not know a topic for a moment.
func (s *Source) hopeless() error {
	if errors.Is(s.failure, errCrowded) {
		return s.failure
	}
	if !lasts(s.failure) || s.attempts < 2 && errors.Is(s.failure, sarama.ErrUnknownTopicOrPartition) {
		return nil
	}
	return s.failure
}

// NewSource returns a Source for a partition. Nothing is committed for it before Open.
func (c *Committer) NewSource(cfg SourceConfig) *Source {
	s := &Source{cfg: cfg, c: c, has: cfg.Stored}
	if cfg.Stored {
		s.stored = cfg.Mark()
	}
	return s
}

// Open starts commits for the partition.
func (s *Source) Open() {
	s.c.mu.Lock()
	s.c.sources[s] = struct{}{}
	s.c.mu.Unlock()
	if !s.cfg.Stored {
		s.c.Urge()
	}
}

// dirty returns what can be stored, and whether a commit of it is due.
func (s *Source) dirty() (partition.Mark, bool) {
	mark := s.cfg.Mark()
	return mark, s.closed == nil && (!s.has || mark.Version > s.stored.Version || slices.ContainsFunc(s.waiters, (*waiter).asks))
}

// Drain marks the beginning of the partition's drain: from now on nobody waits for a commit
// that would be refused again.
func (s *Source) Drain(cause error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.draining = cause
	s.serve(func(w *waiter) (error, bool) { return cause, w.kind == forMark })
	s.endHopeless()
}

// EndConfirms ends the waits of Confirm, and allows no new ones.
func (s *Source) EndConfirms(cause error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.sealed = cause
	s.serve(func(w *waiter) (error, bool) {
		if w.revert == nil {
			return nil, false
		}
		return w.giveUp(cause), true
	})
}

// Close ends the commits of the partition and all waits. The cause of the first call counts.
func (s *Source) Close(cause error) { s.end(cause) }

// end is Close. It reports whether it was the first call.
func (s *Source) end(cause error) (first bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if first = s.closed == nil; first {
		s.closed = cause
	}
	delete(s.c.sources, s)
	s.serve(func(w *waiter) (error, bool) {
		return w.giveUp(s.closed), true
	})
	return first
}
