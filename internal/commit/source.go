package commit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
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
	// Metadata returns what is stored with a mark, a text of at most room bytes; nil: none.
	Metadata func(mark partition.Mark, room int) string
	// Confirmed is called with the mark that the broker has stored.
	Confirmed func(partition.Mark)
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

	waiting atomic.Int32 // len(waiters), to look at without the lock

	// Guarded by the committer's lock.
	has      bool           // a commit of this epoch, or the start, is stored
	stored   partition.Mark // by the last answer
	open     open           // what may still replace it
	sent     uint64         // records below it are covered by a commit whose outcome is unknown
	flying   uint64         // records below it are covered by the commit that is under way
	limit    *partition.Mark
	flushing bool
	closed   error
	failure  error // of the last commit; nil: it was confirmed
	attempts int   // that failed since the last one that did not
	retryAt  time.Time
	waiters  []*waiter
}

type waiter struct {
	seq     uint64 // the record to be covered
	start   bool   // any stored offset will do
	flush   bool   // mark is to be stored
	confirm bool   // its handler has not run yet
	mark    partition.Mark
	result  chan error
}

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

func (s *Source) notStored(w *waiter, cause error) error {
	return &NotStored{Sent: s.mayBeStored(w.seq), Cause: cause}
}

// mayBeStored reports whether a commit that covers a record was sent and not refused.
func (s *Source) mayBeStored(seq uint64) bool {
	return seq < max(s.sent, s.flying, s.stored.Seq)
}

// outcome is how a commit of one partition ended.
type outcome struct {
	mark       partition.Mark
	generation int32 // it was sent under
	sent       bool
	answered   bool
	err        error // nil: it is stored
}

// landed takes note of the end of a commit that was under way, and serves those who
// wait for it: in one lock section, for whoever asks in between would take the commit
// for one that was never sent. It returns how many attempts have failed since a commit succeeded.
func (s *Source) landed(o outcome) (attempt int) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.flying, s.failure = 0, o.err
	if o.err == nil {
		s.attempts, s.retryAt = 0, time.Time{}
		s.has, s.stored = true, o.mark
		s.open.answered(o.generation, s.c.settle)
		s.serveStored()
		return 0
	}
	if o.sent && !(o.answered && refused(o.err)) {
		s.sent = max(s.sent, o.mark.Seq)
	}
	if o.sent && !o.answered {
		s.open.add(o)
	}
	s.attempts++
	s.retryAt = time.Now().Add(pause(s.attempts, o.err))
	if s.hopeless() != nil {
		s.serve(func(w *waiter) (error, bool) {
			return fmt.Errorf("the commit is refused, and would be again: %w", o.err), w.flush
		})
	}
	return s.attempts
}

// hopeless returns the last commit's error, if trying again does not help. A topic may
// be unknown for a moment, to a broker that has just started.
func (s *Source) hopeless() error {
	if !lasts(s.failure) || s.attempts < 2 && errors.Is(s.failure, sarama.ErrUnknownTopicOrPartition) {
		return nil
	}
	return s.failure
}

// Hopeless returns why the last commit failed, if trying again within seconds does not
// help: a right is missing, the topic was deleted. Else it returns nil.
func (s *Source) Hopeless() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.hopeless()
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

// dirty returns what is to be sent, and whether it is.
func (s *Source) dirty() (partition.Mark, bool) {
	mark := s.cfg.Mark()
	s.cut(&mark)
	return mark, s.closed == nil && (!s.has || mark.Offset > s.stored.Offset || mark.Changes > s.stored.Changes)
}

// Failure returns why the last commit was not confirmed, nil if it was.
func (s *Source) Failure() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.failure
}

// Limit cuts a mark to what EndConfirms lets be sent; it reports whether it did.
func (s *Source) Limit(mark *partition.Mark) bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.cut(mark)
}

func (s *Source) cut(mark *partition.Mark) bool {
	if s.limit == nil || mark.Seq <= s.limit.Seq {
		return false
	}
	*mark = *s.limit
	return true
}

// Waiting reports, without a lock, whether somebody waits for a commit.
func (s *Source) Waiting() bool { return s.waiting.Load() > 0 }

// serveStored ends the waits for what is stored, for good.
func (s *Source) serveStored() {
	s.serve(func(w *waiter) (error, bool) { return nil, s.serves(w, s.sure()) })
	if len(s.waiters) == 0 {
		return
	}
	if next, dirty := s.dirty(); dirty && slices.ContainsFunc(s.waiters, func(w *waiter) bool { return s.serves(w, next) }) {
		s.c.Urge() // they would be served by a further commit already
	}
}

// serves reports whether w waits for no more than a mark that is stored.
func (s *Source) serves(w *waiter, mark partition.Mark) bool {
	switch {
	case w.start:
		return s.has
	case w.flush:
		return s.has && mark.Offset >= w.mark.Offset && mark.Changes >= w.mark.Changes
	}
	return w.seq < mark.Seq
}

// sure returns the mark below which nothing can put the stored offset back any more.
func (s *Source) sure() partition.Mark {
	if s.open.count > 0 && (s.open.mark.Offset < s.stored.Offset || s.open.mark.Changes < s.stored.Changes) {
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
	s.waiting.Store(int32(len(s.waiters)))
}

// Wait returns once a commit that covers the record is stored.
func (s *Source) Wait(ctx context.Context, seq uint64) error {
	return s.wait(ctx, &waiter{seq: seq})
}

// Confirm is Wait for a record whose handler runs only afterwards. The record's
// own mark is what a last commit stops at, should none that covers the record ever be sent.
func (s *Source) Confirm(ctx context.Context, own partition.Mark) error {
	return s.wait(ctx, &waiter{seq: own.Seq, confirm: true, mark: own})
}

// WaitStart returns once the position the claim starts from is stored.
func (s *Source) WaitStart(ctx context.Context) error {
	return s.wait(ctx, &waiter{start: true})
}

func (s *Source) wait(ctx context.Context, w *waiter) error {
	w.result = make(chan error, 1)
	s.c.mu.Lock()
	if s.serves(w, s.sure()) {
		s.c.mu.Unlock()
		return nil
	}
	if s.closed != nil {
		defer s.c.mu.Unlock()
		return s.notStored(w, s.closed)
	}
	s.waiters = append(s.waiters, w)
	s.waiting.Store(int32(len(s.waiters)))
	s.c.mu.Unlock()
	s.c.Urge()
	if err, ok := s.await(ctx, w); ok {
		return err
	}
	s.c.mu.Lock()
	cause := context.Cause(ctx)
	if w.flush {
		cause = errors.Join(cause, s.failure)
		if s.failure == nil && s.serves(w, s.stored) {
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
	return s.wait(ctx, &waiter{flush: true, mark: mark})
}

// EndWaits ends the waits of Wait for records from a sequence number on. What they
// wait for is still sent.
func (s *Source) EndWaits(from uint64, cause error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.serve(func(w *waiter) (error, bool) {
		return s.notStored(w, cause), !w.start && !w.confirm && w.seq >= from
	})
}

// EndConfirms ends the waits of Confirm for records from a sequence number on. What
// was never sent for them is not sent any more, so those records are left to the next owner.
func (s *Source) EndConfirms(from uint64, cause error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for _, w := range s.waiters {
		if w.confirm && w.seq >= from && !s.mayBeStored(w.seq) && (s.limit == nil || w.seq < s.limit.Seq) {
			s.limit = &w.mark
		}
	}
	s.serve(func(w *waiter) (error, bool) {
		return s.notStored(w, cause), w.confirm && w.seq >= from
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
		return s.notStored(w, s.closed), true
	})
	return first
}

// Told waits until the hooks of the partition's commits have returned, but not for long.
func (s *Source) Told() { s.c.teller.await(&s.told, closePatience) }
