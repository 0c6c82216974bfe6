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

// SourceConfig describes one partition to a committer.
type SourceConfig struct {
	Topic     string
	Partition int32
	// Mark returns what could be committed now, Running how many handlers are at work.
	Mark    func() partition.Mark
	Running func() int
	// Snapshot returns what is stored, and the metadata that says so, of at most room bytes.
	Snapshot func(room int) (*partition.Snapshot, string)
	// Reverted reports whether a snapshot says more than is true by now.
	Reverted func(*partition.Snapshot) bool
	// Confirmed is called with what the broker has stored, and whether that left out, for want
	// of room, a record that somebody waits for.
	Confirmed func(s *partition.Snapshot, left bool)
	// Fenced is called when the group has gone on without this member.
	Fenced func(error)
	// Stored is false where the start position itself is still to be committed.
	Stored bool
}

// Source is one partition of a committer, from its claim's start to its end.
type Source struct {
	cfg  SourceConfig
	c    *Committer
	told told // guarded by the teller's lock

	// Guarded by the committer's lock.
	has      bool           // a commit of this epoch, or the start, is stored
	stored   partition.Mark // by the last answer
	text     string         // the metadata with it
	open     open           // what may still replace it
	flushing bool
	draining error // the cause; nil: it is not
	sealed   error // the cause, once nothing can be confirmed any more
	closed   error
	failure  error // of the last commit; nil: it was confirmed
	attempts int   // that failed since the last one that did not
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
	seq    uint64 // the record to be covered
	start  bool   // any stored offset will do
	flush  bool   // mark is to be stored
	named  bool   // likewise, but not any more in a drain
	mark   partition.Mark
	revert func() // takes back that the record is settled; nil: its handler has run
	result chan error

	asked   bool // the commit that is under way was made after the wait began
	flying  bool // it covers the record
	sent    bool // so did one whose outcome is unknown
	covered bool // so does what is stored
	left    bool // the last commit left it out, for want of room
}

// mayBeStored reports whether a commit that covers the record was sent and not refused.
func (w *waiter) mayBeStored() bool { return w.flying || w.sent || w.covered }

// NotStored is the error of a wait that ended with its partition.
type NotStored struct {
	// Sent: a commit that covers the record was tried, its outcome is unknown.
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

// giveUp returns the error of a wait that ends before its record is stored. One that was to
// be confirmed, and of which no commit was sent, is not settled any more.
func (w *waiter) giveUp(cause error) error {
	sent := w.mayBeStored()
	if !sent && w.revert != nil {
		w.revert()
	}
	return &NotStored{Sent: sent, Cause: cause}
}

// outcome is how a commit of one partition ended.
type outcome struct {
	snapshot   *partition.Snapshot
	text       string
	generation int32 // it was sent under
	sent       bool
	answered   bool
	err        error // nil: it is stored
}

// flies takes note that a commit is about to be sent. It returns false if that says more
// than is true by now.
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

// landed takes note of the end of a commit that was under way, and serves those who
// wait for it: in one lock section, for whoever asks in between would take the commit
// for one that was never sent. It returns how many attempts have failed since a commit succeeded,
// and whether this one left a waiter out.
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

// endHopeless ends the waits of a drain for a commit that trying again does not bring.
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

// hopeless returns the last commit's error, if trying again does not help. A topic may
// be unknown for a moment, to a broker that has just started.
func (s *Source) hopeless() error {
	if !lasts(s.failure) || s.attempts < 2 && errors.Is(s.failure, sarama.ErrUnknownTopicOrPartition) {
		return nil
	}
	return s.failure
}

// NewSource makes a partition's side of the committer. Nothing is committed
// for it before Open.
func (c *Committer) NewSource(cfg SourceConfig) *Source {
	s := &Source{cfg: cfg, c: c, has: cfg.Stored}
	if cfg.Stored {
		s.stored = cfg.Mark()
	}
	return s
}

// Open begins to commit.
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

// asks reports whether a further commit may serve w.
func (w *waiter) asks() bool { return w.forRecord() && !w.covered && !w.left }

// forRecord reports whether w waits for a record, and not for a commit.
func (w *waiter) forRecord() bool { return !w.start && !w.flush && !w.named }

// Failure returns why the last commit was not confirmed, nil if it was.
func (s *Source) Failure() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.failure
}

// serveStored ends the waits for what is stored, for good.
func (s *Source) serveStored() {
	s.serve(func(w *waiter) (error, bool) { return nil, s.serves(w) })
	if mark, dirty := s.dirty(); dirty && slices.ContainsFunc(s.waiters, func(w *waiter) bool {
		return !w.forRecord() || w.asks() || w.seq < mark.Seq
	}) {
		s.c.Urge() // they would be served by a further commit already
	}
}

// serves reports whether w waits for no more than what is stored for good.
func (s *Source) serves(w *waiter) bool {
	switch {
	case w.start:
		return s.has
	case w.flush, w.named:
		return s.has && s.stored.Version >= w.mark.Version && s.open.count == 0
	}
	return w.seq < s.sure().Seq || w.covered && s.open.count == 0
}

// sure returns the mark below which nothing can put the stored offset back any more.
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

// Wait returns once a record that is settled is stored, by the offset or by its mark.
func (s *Source) Wait(ctx context.Context, seq uint64) error {
	return s.wait(ctx, &waiter{seq: seq}, nil)
}

// Confirm settles a record and waits until that is stored. It returns nil without waiting if
// settle returns false; what settle returns beside that is called at once. Should no commit
// that covers the record be sent before the partition's end, it calls revert.
func (s *Source) Confirm(seq uint64, settle func() (bool, func()), revert func()) error {
	return s.wait(context.Background(), &waiter{seq: seq, revert: revert}, settle)
}

// WaitNamed returns once a mark is stored, and an error once the partition drains.
func (s *Source) WaitNamed(mark partition.Mark) error {
	return s.wait(context.Background(), &waiter{named: true, mark: mark}, nil)
}

// WaitStart returns once the position the claim starts from is stored.
func (s *Source) WaitStart(ctx context.Context) error {
	return s.wait(ctx, &waiter{start: true}, nil)
}

// wait calls settle, if there is one, together with what makes w wait: no commit may come
// between them.
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

// await returns what became of a wait, false if ctx ended before.
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

// Flush returns once everything settled so far is stored, or the error of trying. A
// refusal that trying again does not change ends it.
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

// Drain begins the end of the partition: a commit that is refused, and would be again, is
// not waited for any longer.
func (s *Source) Drain(cause error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.draining = cause
	s.serve(func(w *waiter) (error, bool) { return cause, w.named })
	s.endHopeless()
}

// EndConfirms ends the waits of Confirm, and lets none begin.
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

// Close ends the partition's commits and every wait. The first cause stands.
func (s *Source) Close(cause error) { s.end(cause) }

// end is Close, and reports whether its cause is the first.
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

// Told waits until the hooks of the partition's commits have returned, but not for long.
func (s *Source) Told() { s.c.teller.await(&s.told, closePatience) }
