package commit

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

func TestCommitsTheStartAndWhatIsWaitedFor(t *testing.T) {
	b := newBed(t, false, false)
	if err := b.s.WaitStart(deadline(t)); err != nil {
		t.Fatal(err)
	}
	b.wantStored(t, 0)
	b.move(7, 5)
	if err := b.s.Wait(deadline(t), 4); err != nil {
		t.Fatal(err)
	}
	b.wantStored(t, 7)
	until(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.confirmed == (partition.Mark{Offset: 7, Seq: 5, Version: 5})
	})
}

// A wait that the present watermark does not cover does not end with a commit of
// it, nor is it forgotten: the next one that covers it ends it.
func TestWaitIsNotEndedByACommitBelowIt(t *testing.T) {
	b := newBed(t, true, false)
	b.move(5, 5)
	done := make(chan error, 1)
	go func() { done <- b.s.Wait(deadline(t), 9) }()
	if err := b.s.Wait(deadline(t), 4); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("ended by a commit of 5: %v", err)
	default:
	}
	b.move(10, 10)
	b.c.Urge() // as the claim does when the watermark moves
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.wantStored(t, 10)
}

// Whatever the coordinator responds, short of fencing, the commit is tried again.
func TestRetries(t *testing.T) {
	for _, refusal := range []*kerr.Error{
		kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.RebalanceInProgress,
		kerr.RequestTimedOut, kerr.UnknownTopicOrPartition, kerr.TopicAuthorizationFailed, kerr.UnknownServerError,
	} {
		t.Run(refusal.Message, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, true, false)
			for _, offset := range []int64{3, 6} { // attempts are counted from a success on
				b.move(offset, uint64(offset))
				fault := b.broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{commitKey}, Err: refusal, Count: 2})
				if err := b.s.Wait(deadline(t), uint64(offset-1)); err != nil {
					t.Fatal(err)
				}
				b.wantStored(t, offset)
				if fault.Hits() != 2 {
					t.Errorf("%d faults", fault.Hits())
				}
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if !slices.Equal(b.attempts, []int{1, 2, 1, 2}) {
				t.Errorf("the attempts reported: %v", b.attempts)
			}
		})
	}
}

func TestFenced(t *testing.T) {
	for _, refusal := range []*kerr.Error{kerr.UnknownMemberID, kerr.FencedInstanceID, kerr.IllegalGeneration} {
		t.Run(refusal.Message, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, true, false)
			b.move(3, 3)
			b.broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{commitKey}, Err: refusal, Count: -1})
			err := b.s.Wait(deadline(t), 2)
			var not *NotStored
			if !errors.As(err, &not) || not.Sent { // refused: known not to be stored
				t.Fatalf("got %v", err)
			}
			if err := b.s.Wait(deadline(t), 0); !errors.As(err, &not) {
				t.Fatalf("a later wait: %v", err)
			}
			if err := b.s.Flush(deadline(t)); err == nil {
				t.Fatal("a flush after fencing succeeded")
			}
			until(t, func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				return b.fenced != nil
			})
		})
	}
}

// In mid-session a cooperative member's generation changes; for a moment its
// commits are refused.
func TestCooperativeGenerationBump(t *testing.T) {
	b := newBed(t, true, true)
	b.move(3, 3)
	b.broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{commitKey}, Err: kerr.IllegalGeneration, Count: 3})
	if err := b.s.Wait(deadline(t), 2); err != nil {
		t.Fatal(err)
	}
	b.wantStored(t, 3)
}

func TestWaitEndsWithItsContext(t *testing.T) {
	b := newBed(t, true, false)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	done := make(chan error, 1)
	go func() { done <- b.s.Wait(ctx, 5) }()
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Fatalf("got %v", err)
	}
	if b.waiting() > 0 {
		t.Fatal("the wait is still counted")
	}
}

// What ConfirmFirst acked and no commit was ever sent for is taken back, and left by the
// last commit; what was sent stays acked, and says so.
func TestEndConfirms(t *testing.T) {
	b := newBed(t, true, false)
	var cut, cuts atomic.Int32
	cut.Store(1)
	b.broker.Kfake().ControlKey(int16(commitKey), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.broker.Kfake().KeepControl()
		if cut.Load() == 0 {
			return nil, nil, false
		}
		cuts.Add(1)
		return nil, errors.New("no response, the connection is closed"), true
	})
	sent := make(chan error, 1)
	go func() { sent <- b.confirm(3, 3) }()
	until(t, func() bool {
		b.c.mu.Lock()
		defer b.c.mu.Unlock()
		return cuts.Load() > 0 && len(b.s.waiters) == 1 && b.s.waiters[0].reach&unknown != 0
	})
	// A record that comes now is in no commit, for the next one is seconds away ...
	b.c.mu.Lock()
	b.s.retryAt = time.Now().Add(time.Hour)
	b.c.mu.Unlock()
	unsent := make(chan error, 1)
	go func() { unsent <- b.confirm(9, 9) }()
	until(t, func() bool { return b.waiting() == 2 })
	closing := errors.New("closing")
	b.s.EndConfirms(closing)
	var not *NotStored
	if err := <-sent; !errors.As(err, &not) || !not.Sent || !errors.Is(err, closing) {
		t.Fatalf("sent: %v", err)
	}
	if err := <-unsent; !errors.As(err, &not) || not.Sent {
		t.Fatalf("not sent: %v", err)
	}
	if err := b.confirm(10, 10); !errors.As(err, &not) || not.Sent || !errors.Is(err, closing) {
		t.Fatalf("one that comes later: %v", err)
	}
	cut.Store(0) // ... and is in none
	if err := b.s.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
	b.wantStored(t, 4)
}

// A commit that was made of what is taken back meanwhile is not sent.
func TestRevertedCommitIsNotSent(t *testing.T) {
	b := newBed(t, true, false)
	b.takeOver()
	result := make(chan error, 1)
	go func() { result <- b.confirm(2, 2) }()
	until(t, b.waits)
	dues := b.c.gather()
	b.s.EndConfirms(errors.New("closing"))
	var not *NotStored
	if err := <-result; !errors.As(err, &not) || not.Sent {
		t.Fatalf("not sent: %v", err)
	}
	if b.s.flies(dues[0].snapshot) {
		t.Error("it is sent, and the next owner would skip the record")
	}
}

// Who waits for want of room has no commits sent one after the other.
func TestWaiterWithoutRoomUrgesNothing(t *testing.T) {
	b := newBed(t, true, false)
	b.takeOver()
	go func() { _ = b.s.Wait(deadline(t), 9) }()
	until(t, b.waits)
	select {
	case <-b.c.urge:
	case <-deadline(t).Done():
		t.Fatal("who waits has no commit sent")
	}
	dues := b.c.gather()
	b.s.flies(dues[0].snapshot)
	b.move(5, 5) // there is something for the next one
	dues[0].sent, dues[0].responded = true, true
	if _, confirmed := b.s.landed(dues[0]); confirmed == nil || !confirmed.left || len(b.c.urge) > 0 {
		t.Errorf("left out: %+v, %d urgent commits", confirmed, len(b.c.urge))
	}
	b.move(10, 10) // now the next one covers the record
	dues = b.c.gather()
	b.s.flies(dues[0].snapshot)
	dues[0].sent, dues[0].responded = true, true
	b.s.landed(dues[0])
	until(t, func() bool { return !b.waits() })
}

func TestPositions(t *testing.T) {
	b := newBed(t, true, false)
	get := func() map[int32]Position {
		t.Helper()
		got, err := Positions(deadline(t), b.client, b.group, b.topic, 0, map[string][]int32{b.topic: {0, 1}}, false)
		if err != nil {
			t.Fatal(err)
		}
		return got[b.topic]
	}
	none := Position{Offset: -1}
	if got := get(); got[0] != none || got[1] != none {
		t.Fatalf("a group that never committed: %v", got)
	}
	b.move(3, 3)
	b.text = "x"
	if err := b.s.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
	b.broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{9}, Err: kerr.CoordinatorLoadInProgress, Count: 2})
	if got := get(); got[0] != (Position{3, "x"}) || got[1] != none {
		t.Fatalf("got %v", got)
	}
}
