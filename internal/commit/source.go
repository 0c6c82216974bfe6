package commit

import (
	"context"
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
	// Confirmed is called with what the broker has stored, and whether it lacks, because
	// there was no room, a record that somebody waits for.
	Confirmed func(s *partition.Snapshot, left bool)
	// Fenced is called when the group has continued without this member.
	Fenced func(error)
	// Stored is false if the start position has to be committed first.
	Stored bool
}

// Source is one partition of a committer, from the start of its claim to its end.
type Source struct {
	cfg  SourceConfig
	c    *Committer
	told told // guarded by the teller's lock

	// Guarded by the committer's lock.
	has      bool           // a commit of this assignment, or the start position, is stored
	stored   partition.Mark // as of the last answer
	text     string         // its metadata
	open     open           // requests that may still replace it
	flushing bool
	draining error // the cause of the drain; nil before it
	sealed   error // the cause; set when nothing more can be confirmed
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

type waiter struct {
	seq    uint64 // the sequence number of the record to be covered
	start  bool   // any stored offset is enough
	flush  bool   // waits for mark
	named  bool   // likewise, until the drain begins
	mark   partition.Mark
	revert func() // takes the settlement back; nil if the handler has run
	result chan error

	asked   bool // the commit under way was built after the wait began
	flying  bool // it covers the record
	sent    bool // a commit whose outcome is unknown covered the record
	covered bool // what is stored covers the record
	left    bool // the last commit had no room for the record
}

// mayBeStored reports whether a commit that covers the record was sent and not refused.
func (w *waiter) mayBeStored() bool { return w.flying || w.sent || w.covered }

// NotStored is the error of a wait that ended because its partition's assignment ended.
type NotStored struct {
	// Sent reports that a commit that covers the record was sent and its outcome is unknown.
	Sent  bool
	Cause error
}

func (e *NotStored) Error() string {
	if e.Sent {
		return "the commit was sent, but not confirmed: " + e.Cause.Error()
	}
	return "no commit was sent: " + e.Cause.Error()
}

func (e *NotStored) Unwrap() error { return e.Cause }

// giveUp returns the error of a wait that ends before its record is stored. If the record
// was to be confirmed and no commit was sent, its settlement is taken back.
func (w *waiter) giveUp(cause error) error {
	sent := w.mayBeStored()
	if !sent && w.revert != nil {
		w.revert()
	}
	return &NotStored{Sent: sent, Cause: cause}
}

// outcome is the result of a commit for one partition.
type outcome struct {
	snapshot   *partition.Snapshot
	text       string
	generation int32 // that it was sent under
	sent       bool
	answered   bool
	err        error // nil if it is stored
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
		w.flying = w.forRecord() && snapshot.Covers(w.seq)
	}
	return true
}

// landed records the result of the commit under way and serves those who wait for it, in
// one critical section: between the two, the commit would look like one that was never
// sent. It returns the number of consecutive failed attempts, and whether this commit had no
// room for a waiter's record.
func (s *Source) landed(o outcome) (attempt int, left bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.failure = o.err
	if o.err == nil {
		s.attempts, s.retryAt = 0, time.Time{}
		s.has, s.stored, s.text = true, o.snapshot.Mark, o.text
		s.open.answered(o.generation, s.c.settle)
		for _, w := range s.waiters {
			w.covered = o.snapshot.Covers(w.seq)
			w.flying = false
			if w.left = w.asked && w.forRecord() && !w.covered; w.left {
				left = true
			}
		}
		s.serveStored()
		return 0, left
	}
	unknown := o.sent && !(o.answered && refused(o.err))
	for _, w := range s.waiters {
		w.sent = w.sent || w.flying && unknown
		w.flying = false
	}
	if o.sent && !o.answered {
		s.open.add(o)
	}
	s.attempts++
	s.retryAt = time.Now().Add(pause(s.attempts, o.err))
	s.endHopeless()
	return s.attempts, false
}

// endHopeless ends the waits of a drain for a commit that will be refused again.
func (s *Source) endHopeless() {
	err := s.hopeless()
	if err == nil || s.draining == nil {
		return
	}
	err = fmt.Errorf("the commit is refused, and would be again: %w", err)
	s.serve(func(w *waiter) (error, bool) {
		if w.flush {
			return err, true
		}
		return w.giveUp(fmt.Errorf("%w: %w", s.draining, err)), !w.start
	})
}

// hopeless returns the error of the last commit if it will be refused again. A broker that
// has just started may not know a topic for a moment.
func (s *Source) hopeless() error {
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

// asks reports whether another commit may serve w.
func (w *waiter) asks() bool { return w.forRecord() && !w.covered && !w.left }

// forRecord reports whether w waits for a record, not for a commit.
func (w *waiter) forRecord() bool { return !w.start && !w.flush && !w.named }

// Failure returns the error of the last commit, nil if it was confirmed.
func (s *Source) Failure() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.failure
}

// serveStored ends the waits for what is safely stored.
func (s *Source) serveStored() {
	s.serve(func(w *waiter) (error, bool) { return nil, s.serves(w) })
	if mark, dirty := s.dirty(); dirty && slices.ContainsFunc(s.waiters, func(w *waiter) bool {
		return !w.forRecord() || w.asks() || w.seq < mark.Seq
	}) {
		s.c.Urge() // another commit can serve them
	}
}

// serves reports whether what w waits for is safely stored.
func (s *Source) serves(w *waiter) bool {
	switch {
	case w.start:
		return s.has
	case w.flush, w.named:
		return s.has && s.stored.Version >= w.mark.Version && s.open.count == 0
	}
	return w.seq < s.sure().Seq || w.covered && s.open.count == 0
}

// sure returns the mark up to which the stored offset can no longer be put back.
func (s *Source) sure() partition.Mark {
	if s.open.count > 0 && s.open.mark.Version < s.stored.Version {
		return s.open.mark
	}
	return s.stored
}

// serve ends the waits for which done returns true.
func (s *Source) serve(done func(*waiter) (error, bool)) {
	s.waiters = slices.DeleteFunc(s.waiters, func(w *waiter) bool {
		err, ok := done(w)
		if ok {
			w.result <- err
		}
		return ok
	})
}

// Wait returns once a settled record is stored, by the offset or by its mark.
func (s *Source) Wait(ctx context.Context, seq uint64) error {
	return s.wait(ctx, &waiter{seq: seq}, nil)
}

// Confirm settles a record and waits until that is stored. If settle returns false, Confirm
// returns nil without waiting. The function that settle returns is called at once. If no
// commit that covers the record is sent before the assignment ends, Confirm calls revert.
func (s *Source) Confirm(seq uint64, settle func() (bool, func()), revert func()) error {
	return s.wait(context.Background(), &waiter{seq: seq, revert: revert}, settle)
}

// WaitNamed returns once a mark is stored, or an error once the partition drains.
func (s *Source) WaitNamed(mark partition.Mark) error {
	return s.wait(context.Background(), &waiter{named: true, mark: mark}, nil)
}

// WaitStart returns once the start position of the claim is stored.
func (s *Source) WaitStart(ctx context.Context) error {
	return s.wait(ctx, &waiter{start: true}, nil)
}

// wait calls settle, if it is not nil, and registers w, without a commit in between.
func (s *Source) wait(ctx context.Context, w *waiter, settle func() (bool, func())) error {
	w.result = make(chan error, 1)
	s.c.mu.Lock()
	cause := s.closed
	if cause == nil && settle != nil {
		cause = s.sealed
	} else if cause == nil && w.named {
		cause = s.draining
	}
	settled, after := true, func() {}
	if settle != nil {
		if cause != nil {
			s.c.mu.Unlock()
			return &NotStored{Cause: cause}
		}
		settled, after = settle()
	}
	switch {
	case !settled, s.serves(w):
		s.c.mu.Unlock()
		after()
		return nil
	case cause != nil:
		defer s.c.mu.Unlock()
		return w.giveUp(cause)
	}
	s.waiters = append(s.waiters, w)
	s.endHopeless()
	s.c.mu.Unlock()
	after()
	s.c.Urge()
	if err, ok := s.await(ctx, w); ok {
		return err
	}
	s.c.mu.Lock()
	cause = context.Cause(ctx)
	if w.flush {
		cause = errors.Join(cause, s.failure)
		if s.failure == nil && s.stored.Version >= w.mark.Version {
			cause = errors.Join(cause, errOpen)
		}
	}
	s.serve(func(o *waiter) (error, bool) { return cause, o == w })
	s.c.mu.Unlock()
	return <-w.result
}

// await returns the result of a wait, or false if ctx ended before.
func (s *Source) await(ctx context.Context, w *waiter) (error, bool) {
	var look <-chan time.Time
	if w.flush {
		ticker := time.NewTicker(answerPatience / 20)
		defer ticker.Stop()
		look = ticker.C
	}
	for {
		select {
		case err := <-w.result:
			return err, true
		case <-look:
			s.c.hurry()
		case <-ctx.Done():
			return nil, false
		}
	}
}

// Flush returns nil once everything settled so far is stored, or an error. A refusal that
// would be repeated ends it.
func (s *Source) Flush(ctx context.Context) error {
	s.c.mu.Lock()
	mark, _ := s.dirty()
	closed := s.closed
	s.flushing, s.retryAt = true, time.Time{}
	s.c.mu.Unlock()
	if closed != nil {
		return closed
	}
	return s.wait(ctx, &waiter{flush: true, mark: mark}, nil)
}

// Drain marks the beginning of the partition's drain: from now on nobody waits for a commit
// that would be refused again.
func (s *Source) Drain(cause error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.draining = cause
	s.serve(func(w *waiter) (error, bool) { return cause, w.named })
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
	if cause == nil {
		cause = errors.New("closed")
	}
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

// Told waits a short time for the hooks of the partition's commits to return.
func (s *Source) Told() { s.c.teller.await(&s.told, closePatience) }
