package semantics_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	stored "github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// attempts collects the attempts of each record over several services.
type attempts struct {
	mu  sync.Mutex
	all map[int64][]int
}

func (a *attempts) add(d *ackpolicy.Delivery) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all == nil {
		a.all = map[int64][]int{}
	}
	a.all[d.Offset()] = append(a.all[d.Offset()], d.Attempt())
}

func (a *attempts) of(offset int64) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return fmt.Sprint(a.all[offset])
}

func (a *attempts) count(offset int64) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.all[offset])
}

func (a *attempts) times(offset int64, attempt int) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, got := range a.all[offset] {
		if got == attempt {
			n++
		}
	}
	return n
}

// letterBox keeps letters in memory.
type letterBox struct {
	mu      sync.Mutex
	letters []ackpolicy.Letter
}

func (b *letterBox) Send(_ context.Context, _ *sarama.ConsumerMessage, l ackpolicy.Letter) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.letters = append(b.letters, l)
	return nil
}

func (b *letterBox) all() []ackpolicy.Letter {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.letters)
}

// poison fails at the record with this offset, after each attempt of which it is due again soon.
func poison(offset int64, seen *attempts, dead ackpolicy.DeadLetter) (testkit.Option, testkit.Handle) {
	return func(c *ackpolicy.SubscriberConfig) {
			c.MaxDeliveries, c.DeadLetter = 5, dead
			c.Backoff = func(int, error) time.Duration { return 300 * time.Millisecond }
		}, func(_ *message.Message, d *ackpolicy.Delivery) error {
			if seen.add(d); d.Offset() == offset {
				return testkit.ErrBoom
			}
			return nil
		}
}

func wantFiveAndALetter(t *testing.T, offset int64, seen *attempts, dead *letterBox) {
	t.Helper()
	if got := seen.of(offset); got != "[1 2 3 4 5]" {
		t.Errorf("attempts %s", got)
	}
	if letters := dead.all(); len(letters) != 1 || letters[0].Attempts != 5 || !errors.Is(letters[0].Reason, testkit.ErrBoom) {
		t.Errorf("letters %+v", letters)
	}
}

// orderings are all of them, with several handlers where that is possible.
func orderings() map[string]testkit.Option {
	return map[string]testkit.Option{
		"by partition": testkit.Ordering(ackpolicy.OrderByPartition, 0),
		"by key":       testkit.Ordering(ackpolicy.OrderByKey, 4),
		"unordered":    testkit.Ordering(ackpolicy.Unordered, 4),
	}
}

// The attempts of a record count on over restarts, and so does MaxDeliveries.
func TestAttemptsOverRestarts(t *testing.T) {
	t.Parallel()
	for name, order := range orderings() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "c")...)
			dead, seen := &letterBox{}, &attempts{}
			settings, handler := poison(2, seen, dead)
			restarts := 0
			for ; len(dead.all()) == 0 && restarts < 20; restarts++ {
				s := testkit.Consume(t, testkit.Config(group, order, settings), topic, handler, ackpolicy.NackOnError.Middleware)
				testkit.Eventually(t, "one attempt more, or the letter", func() bool { return seen.count(2) > restarts || len(dead.all()) > 0 })
				s.Stop()
			}
			if restarts < 3 {
				t.Errorf("only %d restarts", restarts)
			}
			wantFiveAndALetter(t, 2, seen, dead)
			testkit.WantCommitted(t, group, topic, 0, 3)
		})
	}
}

// So they do where another member takes the partition over, and where it comes back.
func TestAttemptsOverRebalances(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		group, topic := brokertest.Group(t), testkit.NewTopic(t, 2)
		for p := range int32(2) {
			testkit.Produce(t, topic, p, testkit.Numbered(1)...)
		}
		dead, seen := &letterBox{}, &attempts{}
		settings, handler := poison(0, seen, dead)
		quick := func(c *ackpolicy.SubscriberConfig) { c.CommitInterval = 10 * time.Millisecond }
		last := testkit.Consume(t, testkit.Config(group, rebalance, settings, quick), topic, handler, ackpolicy.NackOnError.Middleware)
		for range 3 { // another member comes, and the former one goes
			testkit.Eventually(t, "an attempt", func() bool { return seen.count(0) > 0 })
			next := testkit.Consume(t, testkit.Config(group, rebalance, settings, quick), topic, handler, ackpolicy.NackOnError.Middleware)
			testkit.AwaitGroupOfTwo(t, testkit.Shared, group)
			last.Stop()
			last = next
		}
		testkit.WaitCommitted(t, group, topic, 0, 1)
		testkit.WaitCommitted(t, group, topic, 1, 1)
		last.Stop()
		if got := seen.of(0); len(got) < len("[1 1 2 2 3 3 4 4 5 5]") {
			t.Errorf("attempts %s", got)
		}
		if letters := dead.all(); len(letters) != 2 || letters[0].Attempts != 5 || letters[1].Attempts != 5 {
			t.Errorf("letters %+v", letters)
		}
		for n := 1; n <= 5; n++ {
			if got := seen.times(0, n); got != 2 { // in each partition once
				t.Errorf("attempt %d was made %d times: %s", n, got, seen.of(0))
			}
		}
	})
}

// A delay continues over a restart: the record is not delivered before it is due, and then with the next attempt.
func TestDelayOverRestart(t *testing.T) {
	t.Parallel()
	for name, order := range orderings() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "a")...)
			const delay = 4 * time.Second
			var nacked atomic.Int64 // when
			var seen attempts
			handler := func(_ *message.Message, d *ackpolicy.Delivery) error {
				seen.add(d)
				switch {
				case d.Offset() != 0:
				case nacked.CompareAndSwap(0, time.Now().UnixNano()):
					return ackpolicy.NackAfter(delay)
				case time.Since(time.Unix(0, nacked.Load())) < delay:
					t.Errorf("delivered after %v", time.Since(time.Unix(0, nacked.Load())))
				}
				return nil
			}
			s := testkit.Consume(t, testkit.Config(group, order), topic, handler, ackpolicy.NackOnError.Middleware)
			testkit.Eventually(t, "the nack", func() bool { return nacked.Load() > 0 })
			s.Stop()
			began := time.Now()
			s = testkit.Consume(t, testkit.Config(group, order), topic, handler, ackpolicy.NackOnError.Middleware)
			testkit.WaitCommitted(t, group, topic, 0, 3)
			s.Stop()
			if got := seen.of(0); got != "[1 2]" {
				t.Errorf("attempts %s", got)
			}
			t.Logf("stopped, started, and delivered in %v", time.Since(began))
		})
	}
}

// What was left of a record is not taken for another one's at the same offset, nor what is of an earlier topic.
func TestAttemptsOfAnotherRecord(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*stored.Ledger){
		"another record": func(l *stored.Ledger) { l.Open[0].Check++ },
		"another topic":  func(l *stored.Ledger) { l.TopicID[0]++ },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a")...)
			var seen attempts
			var succeed atomic.Bool
			run := func() *testkit.Service {
				return testkit.Consume(t, testkit.Config(group, func(c *ackpolicy.SubscriberConfig) {
					c.Backoff = func(int, error) time.Duration { return time.Hour }
				}), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
					if seen.add(d); !succeed.Load() {
						return testkit.ErrBoom
					}
					return nil
				}, ackpolicy.NackOnError.Middleware)
			}
			s := run()
			testkit.Eventually(t, "the nack", func() bool { return seen.count(0) == 1 })
			s.Stop()
			position := testkit.StoredPosition(t, group, topic)
			at := stored.Place{Topic: topic, Offset: position.Offset}
			l, err := stored.Decode(at, position.Metadata)
			testkit.Check(t, err)
			if len(l.Open) != 1 || l.Open[0].Attempts != 1 || l.Open[0].Due.IsZero() || l.TopicID == (sarama.Uuid{}) {
				t.Fatalf("stored: %+v", l)
			}
			change(l)
			position.Metadata, _ = stored.Encode(at, l, stored.DefaultRoom)
			testkit.StorePosition(t, group, topic, position)
			succeed.Store(true)
			s = run()
			testkit.WaitCommitted(t, group, topic, 0, 1)
			s.Stop()
			if got := seen.of(0); got != "[1 1]" {
				t.Errorf("attempts %s", got)
			}
		})
	}
}
