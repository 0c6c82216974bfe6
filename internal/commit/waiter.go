package commit

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// waiter waits for a commit of its source. The committer's lock guards it.
type waiter struct {
	kind   waitKind
	seq    uint64         // of the record, for forRecord
	mark   partition.Mark // for forMark and forFlush
	revert func()         // takes the settlement back; nil if the handler has run
	result chan error

	reach reach // of commits that cover the record
	asked bool  // the commit under way was built after the wait began
	left  bool  // the last commit had no room for the record
}

// waitKind is what a waiter waits for.
type waitKind uint8

const (
	forRecord waitKind = iota // its record is stored, by the offset or by its mark
	forMark                   // mark is stored; given up when the drain begins
	forFlush                  // mark is stored, in a drain
)

// reach is how far commits that cover a record have got: a set of these.
type reach uint8

const (
	underWay reach = 1 << iota // one is being sent
	unknown                    // one was sent, and its outcome is unknown
	stored                     // one is stored
)

// covered records whether a commit that has got as far as r covers the waiter's record.
func (w *waiter) covered(r reach, by *partition.Snapshot) {
	if w.reach &^= r; w.kind == forRecord && by.Covers(w.seq) {
		w.reach |= r
	}
}

// failed records that the commit under way failed; lost if its outcome is unknown.
func (w *waiter) failed(lost bool) {
	if w.reach&underWay != 0 && lost {
		w.reach |= unknown
	}
	w.reach &^= underWay
}

// replaced records that the stored commit was replaced by another one.
func (w *waiter) replaced() {
	if w.reach&stored != 0 {
		w.reach = w.reach&^stored | unknown
	}
}

// asks reports whether another commit may serve w.
func (w *waiter) asks() bool { return w.kind == forRecord && w.reach&stored == 0 && !w.left }

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
	sent := w.reach != 0
	if !sent && w.revert != nil {
		w.revert()
	}
	return &NotStored{Sent: sent, Cause: cause}
}

// serveStored ends the waits for what is safely stored.
func (s *Source) serveStored() {
	s.serve(func(w *waiter) (error, bool) { return nil, s.serves(w) })
	if mark, dirty := s.dirty(); dirty && slices.ContainsFunc(s.waiters, func(w *waiter) bool {
		return w.kind != forRecord || w.asks() || w.seq < mark.Seq
	}) {
		s.c.Urge() // another commit can serve them
	}
}

// serves reports whether what w waits for is safely stored.
func (s *Source) serves(w *waiter) bool {
	switch w.kind {
	case forMark, forFlush:
		return s.has && s.stored.Version >= w.mark.Version && s.open.count == 0
	}
	return w.seq < s.sure().Seq || w.reach&stored != 0 && s.open.count == 0
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
	return s.wait(context.Background(), &waiter{kind: forMark, mark: mark}, nil)
}

// WaitStart returns once the start position of the claim is stored.
func (s *Source) WaitStart(ctx context.Context) error {
	return s.wait(ctx, &waiter{kind: forMark}, nil)
}

// wait calls settle, if it is not nil, and registers w, without a commit in between.
func (s *Source) wait(ctx context.Context, w *waiter, settle func() (bool, func())) error {
	w.result = make(chan error, 1)
	s.c.mu.Lock()
	cause := s.closed
	if cause == nil && settle != nil {
		cause = s.sealed
	} else if cause == nil && w.kind == forMark {
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
	select {
	case err := <-w.result:
		return err
	case <-ctx.Done():
	}
	s.c.mu.Lock()
	cause = context.Cause(ctx)
	if w.kind == forFlush {
		cause = errors.Join(cause, s.failure)
		if s.failure == nil && s.stored.Version >= w.mark.Version {
			cause = errors.Join(cause, errOpen)
		}
	}
	s.serve(func(o *waiter) (error, bool) { return cause, o == w })
	s.c.mu.Unlock()
	return <-w.result
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
	return s.wait(ctx, &waiter{kind: forFlush, mark: mark}, nil)
}
