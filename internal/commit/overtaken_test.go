package commit

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// hold keeps the first commit from being processed until release is closed, whatever
// becomes of its connection. commits counts those that arrived.
func (b *bed) hold(release <-chan struct{}) (commits *atomic.Int32) {
	commits = new(atomic.Int32)
	fake := b.broker.Kfake()
	fake.ControlKey(int16(commitKey), func(kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		if commits.Add(1) == 1 {
			fake.SleepControl(func() { <-release })
		}
		return nil, nil, false
	})
	return commits
}

// overtake has a commit of 6 stored, and then one of 3 processed that was sent before.
func (b *bed) overtake(t *testing.T, waits func()) {
	release := make(chan struct{})
	commits := b.hold(release)
	b.move(3, 3)
	b.c.Urge()
	until(t, func() bool { return commits.Load() == 1 })
	b.move(6, 6)
	waits()
	b.network.Cut()
	b.network.Heal()
	until(t, func() bool { return b.storedIs(6) })
	close(release)
	until(t, func() bool { return b.storedIs(3) })
	if at := b.confirmedAt(); at != 0 {
		t.Errorf("%d is confirmed, and 3 is stored", at)
	}
}

func (b *bed) confirmedAt() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.confirmed.Offset
}

func (b *bed) storedIs(offset int64) bool {
	got, err := brokertest.Committed(b.broker.Addrs(), b.group, b.topic, 0)
	return err == nil && got == offset
}

// A commit whose connection broke is processed behind a newer one and puts the offset
// back. The last commit repairs that before it returns.
func TestOvertakenCommitIsRepairedByTheFlush(t *testing.T) {
	b := newBed(t, true, false)
	b.c.settle = 5 * time.Second // or it may be over before the test has looked
	b.overtake(t, func() {})
	if err := b.s.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
	b.wantStored(t, 6)
	until(t, func() bool { return b.confirmedAt() == 6 })
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.putBack, [][2]int64{{3, 6}}) {
		t.Errorf("reported %v", b.putBack)
	}
}

// Whoever waits for the newer one waits until the older one can come no more; what
// either of them covers is stored at once.
func TestOvertakenCommitIsNotTakenForStored(t *testing.T) {
	for name, confirm := range map[string]bool{"AckSync": false, "ConfirmFirst": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, true, false)
			b.c.settle = 5 * time.Second
			newer := make(chan error, 1)
			b.overtake(t, func() {
				go func() {
					if confirm {
						newer <- b.s.Confirm(5, func() (bool, func()) { return true, func() {} }, nil)
					} else {
						newer <- b.s.Wait(deadline(t), 5)
					}
				}()
				until(t, b.waits)
			})
			if err := b.s.Wait(deadline(t), 2); err != nil { // covered by the older one, too
				t.Fatal(err)
			}
			if len(newer) > 0 {
				t.Fatalf("returned %v, and 3 is stored", <-newer)
			}
			if err := <-newer; err != nil {
				t.Fatal(err)
			}
			b.wantStored(t, 6)
		})
	}
}

// The same mark again, which is the rule on an idle partition, is not read back: in
// whatever order the two are processed, the same is stored.
func TestSameCommitAgainIsNotReadBack(t *testing.T) {
	b := newBed(t, true, false)
	release := make(chan struct{})
	commits := b.hold(release)
	fetches := b.broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{9}, Observe: true, Count: -1})
	b.move(3, 3)
	b.c.Urge()
	until(t, func() bool { return commits.Load() == 1 })
	b.network.Cut()
	b.network.Heal()
	if err := b.s.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if commits.Load() != 2 || fetches.Hits() != 0 {
		t.Errorf("%d commits, %d fetches", commits.Load(), fetches.Hits())
	}
	close(release)
	b.wantStored(t, 3)
}

// A generation that is newer fences what came under an older one.
func TestNewerGenerationFencesTheOpenCommit(t *testing.T) {
	now := func() int32 { return 7 }
	o := open{}
	o.add(due{snapshot: &partition.Snapshot{}, generation: now()})
	o.responded(now(), time.Second)
	if o.count != 1 || o.settles.IsZero() {
		t.Errorf("the same generation: %+v", o)
	}
	o.responded(now()+1, time.Second)
	if o.count != 0 {
		t.Errorf("the next generation: %+v", o)
	}
}

// The broker may have stored what it gives such a response to: the record's handler must not run, and
// the record stays acked.
func TestAmbiguousResponses(t *testing.T) {
	for refusal, sent := range map[*kerr.Error]bool{
		kerr.CoordinatorNotAvailable: true, kerr.NotCoordinator: true, kerr.RequestTimedOut: true, kerr.UnknownServerError: true,
		kerr.CoordinatorLoadInProgress: false, kerr.RebalanceInProgress: false, kerr.TopicAuthorizationFailed: false,
	} {
		t.Run(refusal.Message, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, true, false)
			fault := b.broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{commitKey}, Err: refusal, Count: -1})
			result := make(chan error, 1)
			go func() { result <- b.confirm(2, 2) }()
			until(t, func() bool { return fault.Hits() > 1 }) // the first one has landed
			until(t, func() bool {
				b.c.mu.Lock()
				defer b.c.mu.Unlock()
				return b.s.waiters[0].reach&underWay == 0
			})
			b.s.EndConfirms(errors.New("closing"))
			var not *NotStored
			if err := <-result; !errors.As(err, &not) || not.Sent != sent {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Between the response and what it means for those who wait, nobody takes the commit for
// one that was never sent.
func TestConfirmHasNoWindow(t *testing.T) {
	b := newBed(t, true, false)
	b.takeOver()
	result := make(chan error, 1)
	go func() { result <- b.confirm(2, 2) }()
	until(t, b.waits)
	dues := b.c.gather()
	b.s.flies(dues[0].snapshot)
	dues[0].sent, dues[0].responded = true, true
	b.s.landed(dues[0])
	b.s.EndConfirms(errors.New("closing"))
	if err := <-result; err != nil {
		t.Errorf("the broker has stored it, and the wait ends with: %v", err)
	}
	if b.reverted {
		t.Error("the record is left to the next owner, too")
	}
}
