package commit

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// SourceConfig describes one partition to a committer.
type SourceConfig struct {
	Topic     string
	Partition int32
	// Mark answers what could be committed now, Running how many handlers are at work.
	Mark    func() partition.Mark
	Running func() int
	// Confirmed is told the mark that the broker has stored.
	Confirmed func(partition.Mark)
	// Fenced is told that the group has gone on without this member.
	Fenced func(error)
	// Stored is false where the start position itself is still to be committed.
	Stored bool
}

// Source is one partition of a committer, from its claim's start to its end.
type Source struct {
	cfg SourceConfig
	c   *Committer

	waiting  atomic.Int32 // len(waiters), to look at without the lock
	attempts int          // since the last commit that succeeded; the committer's goroutine's own

	// Guarded by the committer's lock.
	has      bool   // a commit of this epoch, or the start, is stored
	stored   uint64 // records below it are covered by what is stored
	sent     uint64 // records below it are covered by a commit whose outcome is unknown
	flying   uint64 // records below it are covered by the commit that is under way
	limit    *partition.Mark
	flushing bool
	closed   error
	failure  error // of the last commit; nil: it was confirmed
	waiters  []*waiter
}

type waiter struct {
	seq     uint64 // the record to be covered
	start   bool   // any stored offset will do
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
	return &NotStored{Sent: w.seq < max(s.sent, s.flying), Cause: cause}
}

// landed takes note of the end of a commit that was under way. A refusal is
// known not to be stored; no answer is not.
func (s *Source) landed(mark partition.Mark, failure error, unknown bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.flying, s.failure = 0, failure
	if unknown {
		s.sent = max(s.sent, mark.Seq)
	}
}

// NewSource makes a partition's side of the committer. Nothing is committed
// for it before Open.
func (c *Committer) NewSource(cfg SourceConfig) *Source {
	return &Source{cfg: cfg, c: c, has: cfg.Stored}
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

// dirty answers what is to be sent.
func (s *Source) dirty() (partition.Mark, bool) {
	mark := s.cfg.Mark()
	s.cut(&mark)
	return mark, s.closed == nil && (!s.has || mark.Seq > s.stored)
}

// Failure answers why the last commit was not confirmed, nil if it was.
func (s *Source) Failure() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.failure
}

// Limit cuts a mark to what EndConfirms lets be sent; it answers whether it did.
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

// Waiting tells, without a lock, whether somebody waits for a commit.
func (s *Source) Waiting() bool { return s.waiting.Load() > 0 }

// confirm takes note of a stored mark and answers whether a further commit
// would serve somebody already.
func (s *Source) confirm(mark partition.Mark) (again bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.has = true
	s.stored = max(s.stored, mark.Seq)
	s.serve(func(w *waiter) (error, bool) { return nil, w.start || w.seq < s.stored })
	if len(s.waiters) > 0 {
		next, dirty := s.dirty()
		if dirty {
			again = slices.ContainsFunc(s.waiters, func(w *waiter) bool { return w.seq < next.Seq })
		}
	}
	return again
}

// serve ends the waits that done answers for.
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
	if s.has && (w.start || w.seq < s.stored) {
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
	select {
	case err := <-w.result:
		return err
	case <-ctx.Done():
	}
	s.c.mu.Lock()
	s.serve(func(o *waiter) (error, bool) { return context.Cause(ctx), o == w })
	s.c.mu.Unlock()
	return <-w.result
}

// Flush returns once everything settled so far is stored, or the error of trying.
func (s *Source) Flush(ctx context.Context) error {
	s.c.mu.Lock()
	mark, dirty := s.dirty()
	closed := s.closed
	s.flushing = true
	s.c.mu.Unlock()
	switch {
	case closed != nil:
		return closed
	case !dirty:
		return nil
	case mark.Seq == 0:
		return s.WaitStart(ctx)
	}
	return s.Wait(ctx, mark.Seq-1)
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
		if w.confirm && w.seq >= from && w.seq >= max(s.sent, s.flying) && (s.limit == nil || w.seq < s.limit.Seq) {
			s.limit = &w.mark
		}
	}
	s.serve(func(w *waiter) (error, bool) {
		return s.notStored(w, cause), w.confirm && w.seq >= from
	})
}

// Close ends the partition's commits and every wait. The first cause stands.
func (s *Source) Close(cause error) {
	if cause == nil {
		cause = errors.New("closed")
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.closed == nil {
		s.closed = cause
	}
	delete(s.c.sources, s)
	s.serve(func(w *waiter) (error, bool) {
		return s.notStored(w, s.closed), true
	})
}
