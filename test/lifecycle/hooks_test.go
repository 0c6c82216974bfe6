package lifecycle_test

import (
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Close, of the Subscriber or of the Router, may be called from any hook: it returns, and everything that was settled is stored.
func TestCloseFromAHook(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(h *ackpolicy.Hooks, stop func()){
		"Assigned":  func(h *ackpolicy.Hooks, stop func()) { h.Assigned = func(ackpolicy.AssignedEvent) { stop() } },
		"Settled":   func(h *ackpolicy.Hooks, stop func()) { h.Settled = func(ackpolicy.SettledEvent) { stop() } },
		"Committed": func(h *ackpolicy.Hooks, stop func()) { h.Committed = func(ackpolicy.CommittedEvent) { stop() } },
		"Revoked":   func(h *ackpolicy.Hooks, stop func()) { h.Revoked = func(ackpolicy.RevokedEvent) { stop() } },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 2, testkit.Numbered(3)...)
			var sub atomic.Pointer[ackpolicy.Subscriber]
			returned := make(chan error, 1)
			var once sync.Once
			cfg := testkit.Config(group)
			set(&cfg.Hooks, func() {
				once.Do(func() {
					began := time.Now()
					testkit.Eventually(t, "the subscriber", func() bool { return sub.Load() != nil })
					returned <- sub.Load().Close()
					if took := time.Since(began); took > cfg.DrainTimeout+5*time.Second {
						t.Errorf("Close took %v", took)
					}
				})
			})
			s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			s.Wait(t, 1)
			sub.Store(s.Sub)
			if name == "Revoked" {
				go s.Stop()
			}
			testkit.Check(t, testkit.Await(t, "Close, called from the hook", returned))
			s.Stop()
			testkit.WantCommitted(t, group, topic, 0, int64(len(s.All())))
		})
	}
}

// A hook that never returns costs no more than its bound, neither time nor memory, and the log says which one it is.
func TestHookThatNeverReturns(t *testing.T) {
	t.Parallel()
	const records = 10_000 // more than may wait
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	forever := make(chan struct{})
	t.Cleanup(func() { close(forever) })
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.Unordered, 64))
	var calls atomic.Int32
	cfg.Hooks.Settled = func(ackpolicy.SettledEvent) { calls.Add(1); <-forever }
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, records)
	began := time.Now()
	s.Stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopped after %v", took)
	}
	if calls.Load() != 1 {
		t.Errorf("the hook was called %d times at once", calls.Load())
	}
	logged := s.Log.At("error")
	if len(testkit.Containing(logged, "events are dropped", "Hooks.Settled")) == 0 || len(testkit.Containing(logged, "Closed without waiting for a hook", "Hooks.Settled")) == 0 {
		t.Errorf("the log does not name the hook:\n%s", strings.Join(logged, "\n"))
	}
}

// Hooks are called in the order of the events, one at a time, and all of them before Close returns.
func TestHooksInOrder(t *testing.T) {
	t.Parallel()
	const records = 3000
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	var reported []string // no lock: one call at a time, and Close follows the last
	var next, committed int64
	cfg := testkit.Config(group)
	cfg.Hooks.Assigned = func(ackpolicy.AssignedEvent) { reported = append(reported, "assigned") }
	cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
		if e.Offset != next {
			t.Errorf("offset %d where %d is next", e.Offset, next)
		}
		next++
		if e.Offset%500 == 0 {
			runtime.Gosched()
		}
	}
	cfg.Hooks.Committed = func(e ackpolicy.CommittedEvent) {
		if e.Offset < committed {
			t.Errorf("committed %d after %d", e.Offset, committed)
		}
		committed = e.Offset
	}
	cfg.Hooks.Revoked = func(ackpolicy.RevokedEvent) { reported = append(reported, "revoked") }
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, records)
	s.Stop()
	if !slices.Equal(reported, []string{"assigned", "revoked"}) || next != records || committed != records {
		t.Errorf("%v, %d settled, %d committed", reported, next, committed)
	}
}

// A hook may settle records.
func TestHookSettles(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	cfg := testkit.Config(group)
	var s *testkit.Service
	ready := make(chan struct{})
	cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
		<-ready
		if e.Offset == 1 {
			s.All()[0].Reject(errors.New("record 1 says so"))
		}
	}
	s = testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			d.Ack()
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	close(ready)
	testkit.WaitCommitted(t, group, topic, 0, 2)
	s.Stop()
	if status := s.All()[0].Status(); status != ackpolicy.Rejected {
		t.Errorf("status: %v", status)
	}
}

// A hook of commits that blocks delays no AckSync of any partition. Afterwards it is called for the latest commits.
func TestSlowCommitHook(t *testing.T) {
	t.Parallel()
	const records, most = 50, 2 * (1 + 16 + 1) // of each partition the one it blocked at, what is kept, and one at the end
	topic := testkit.FilledTopic(t, 2, records)
	release := make(chan struct{})
	cfg := testkit.Config(brokertest.Group(t))
	last, calls := map[int32]int64{}, 0 // no lock: one call at a time, and Close follows the last
	cfg.Hooks.Committed = func(e ackpolicy.CommittedEvent) {
		<-release
		last[e.Partition] = e.Offset
		calls++
	}
	s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		return d.AckSync(msg.Context())
	}, ackpolicy.Manual.Middleware)
	s.Wait(t, 2*records)
	close(release)
	s.Stop()
	if last[0] != records || last[1] != records || calls > most {
		t.Errorf("%d calls, the last ones with %v", calls, last)
	}
}

// A hook of commits may close the subscriber.
func TestCloseFromCommitHook(t *testing.T) {
	t.Parallel()
	topic := testkit.FilledTopic(t, 1, 1)
	closed := make(chan error, 1)
	subscriber := make(chan *ackpolicy.Subscriber, 1)
	cfg := testkit.Config(brokertest.Group(t))
	cfg.Hooks.Committed = func(ackpolicy.CommittedEvent) {
		select {
		case sub := <-subscriber:
			closed <- sub.Close()
		default:
		}
	}
	s := testkit.NewConsumer(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	subscriber <- s.Sub
	s.Start(t)
	if err := testkit.Await(t, "Close, called by the hook", closed); err != nil {
		t.Error(err)
	}
	s.Stop()
}
