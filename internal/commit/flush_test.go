package commit

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A response that does not come is not waited for until the drain's time is up: the
// commit is tried again on a new connection.
func TestFlushOutlivesALostResponse(t *testing.T) {
	b := newBed(t, true, false)
	release := make(chan struct{})
	commits := b.hold(release)
	b.move(3, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // the client would wait for 30
	defer cancel()
	if err := b.s.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if n := commits.Load(); n != 2 {
		t.Errorf("%d commits", n)
	}
	close(release)
	b.wantStored(t, 3)
}

// Nor is the response of whoever is asked for the coordinator.
func TestFlushOutlivesASilentLookUp(t *testing.T) {
	b := newBed(t, true, false)
	b.move(1, 1)
	if err := b.s.Flush(deadline(t)); err != nil { // the coordinator is known
		t.Fatal(err)
	}
	fake, release, asked := b.broker.Kfake(), make(chan struct{}), false
	fake.ControlKey(int16(kmsg.FindCoordinator), func(kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		if !asked {
			asked = true
			fake.SleepControl(func() { <-release })
		}
		return nil, nil, false
	})
	defer close(release)
	moved := fake.Fault(kfake.Fault{Keys: []kmsg.Key{commitKey}, Err: kerr.NotCoordinator, Count: 1})
	b.move(3, 3)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // the client would wait for 30
	defer cancel()
	if err := b.s.Flush(ctx); err != nil || moved.Hits() != 1 {
		t.Fatal(moved.Hits(), err)
	}
	b.wantStored(t, 3)
}

// What trying again within seconds does not change ends the last commit at once.
func TestFlushEndsAtARefusalThatLasts(t *testing.T) {
	for refusal, tries := range map[*kerr.Error]int{
		kerr.UnknownTopicOrPartition: 2, kerr.TopicAuthorizationFailed: 1, kerr.GroupAuthorizationFailed: 1,
		kerr.InvalidCommitOffsetSize: 1, kerr.InvalidGroupID: 1,
	} {
		t.Run(refusal.Message, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, true, false)
			b.move(3, 3)
			fault := b.broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{commitKey}, Err: refusal, Count: -1})
			b.s.Drain(errors.New("closing"))
			err := b.s.Flush(deadline(t))
			if err == nil || errors.Is(err, context.DeadlineExceeded) || int(fault.Hits()) != tries {
				t.Errorf("%d commits, then: %v", fault.Hits(), err)
			}
			if err := b.s.Wait(deadline(t), 9); err == nil {
				t.Error("and a wait for a commit does not end")
			}
		})
	}
}

// In mid-run it is tried again, rarely; a last commit does not wait for the next of these.
func TestRefusalThatLastsIsTriedRarely(t *testing.T) {
	b := newBed(t, true, false)
	b.move(3, 3)
	fault := b.broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{commitKey}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	b.c.Urge()
	until(t, func() bool { return fault.Hits() == 5 })
	var pauses time.Duration
	for attempt := 1; attempt <= 10; attempt++ {
		pauses += pause(attempt, kerrToSarama(kerr.TopicAuthorizationFailed))
	}
	if pauses < 15*time.Second {
		t.Errorf("ten attempts in %v", pauses)
	}
	fault.Remove() // the right is given back
	if err := b.s.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
	b.wantStored(t, 3)
}

// One partition's refusal does not slow down the others' commits.
func TestRefusalOfOnePartition(t *testing.T) {
	b := newBed(t, true, false)
	other := b.another(t, 1)
	fault := b.broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{commitKey}, Partitions: []int32{1}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	other.move(3, 3)
	b.c.Urge()
	until(t, func() bool { return fault.Hits() >= 5 }) // the next try is in 320 ms
	for offset := range int64(20) {
		b.move(offset+1, uint64(offset+1))
		if err := b.s.Wait(deadline(t), uint64(offset)); err != nil {
			t.Fatal(err)
		}
	}
	if n := fault.Hits(); n > 12 {
		t.Errorf("%d commits of the partition that is refused", n)
	}
}
