package ackpolicy_test

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

// fetchStored returns what the group stores for partition 0.
func fetchStored(t testing.TB, group, topic string) (position sarama.OffsetFetchResponseBlock) {
	t.Helper()
	admin(t, shared, func(a sarama.ClusterAdmin) error {
		response, err := a.ListConsumerGroupOffsets(group, map[string][]int32{topic: {0}})
		if err == nil {
			position = *response.GetBlock(topic, 0)
		}
		return err
	})
	return position
}

// store stores it for a group without members.
func store(t testing.TB, group, topic string, position sarama.OffsetFetchResponseBlock) {
	t.Helper()
	cfg := sarama.NewConfig()
	client, err := sarama.NewClient(shared.Addrs(), cfg)
	check(t, err)
	defer client.Close()
	eventually(t, "the offset is stored", func() bool {
		coordinator, err := client.Coordinator(group)
		if err != nil {
			return false
		}
		request := sarama.NewOffsetCommitRequest(cfg, group)
		request.ConsumerGroupGeneration = -1
		request.AddBlockWithLeaderEpoch(topic, 0, position.Offset, -1, 0, position.Metadata)
		response, err := coordinator.CommitOffset(request)
		return err == nil && response.Errors[topic][0] == sarama.ErrNoError
	})
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
func poison(offset int64, seen *attempts, dead ackpolicy.DeadLetter) (change, handle) {
	return func(c *ackpolicy.SubscriberConfig) {
			c.MaxDeliveries, c.DeadLetter = 5, dead
			c.Backoff = func(int, error) time.Duration { return 300 * time.Millisecond }
		}, func(_ *message.Message, d *ackpolicy.Delivery) error {
			if seen.add(d); d.Offset() == offset {
				return errBoom
			}
			return nil
		}
}

func wantFiveAndALetter(t *testing.T, offset int64, seen *attempts, dead *letterBox) {
	t.Helper()
	if got := seen.of(offset); got != "[1 2 3 4 5]" {
		t.Errorf("attempts %s", got)
	}
	if letters := dead.all(); len(letters) != 1 || letters[0].Attempts != 5 || !errors.Is(letters[0].Reason, errBoom) {
		t.Errorf("letters %+v", letters)
	}
}

// orderings are all of them, with several handlers where that is possible.
func orderings() map[string]change {
	return map[string]change{
		"by partition": ordering(ackpolicy.OrderByPartition, 0),
		"by key":       ordering(ackpolicy.OrderByKey, 4),
		"unordered":    ordering(ackpolicy.Unordered, 4),
	}
}

// The attempts of a record count on over restarts, and so does MaxDeliveries.
func TestAttemptsOverRestarts(t *testing.T) {
	t.Parallel()
	for name, order := range orderings() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, keyed("a", "b", "c")...)
			dead, seen := &letterBox{}, &attempts{}
			settings, handler := poison(2, seen, dead)
			restarts := 0
			for ; len(dead.all()) == 0 && restarts < 20; restarts++ {
				s := consume(t, config(group, order, settings), topic, handler, ackpolicy.NackOnError.Middleware)
				eventually(t, "one attempt more, or the letter", func() bool { return seen.count(2) > restarts || len(dead.all()) > 0 })
				s.stop()
			}
			if restarts < 3 {
				t.Errorf("only %d restarts", restarts)
			}
			wantFiveAndALetter(t, 2, seen, dead)
			wantCommitted(t, group, topic, 0, 3)
		})
	}
}

// So they do where another member takes the partition over, and where it comes back.
func TestAttemptsOverRebalances(t *testing.T) {
	t.Parallel()
	for protocol, rebalance := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 2)
			for p := range int32(2) {
				produce(t, topic, p, numbered(1)...)
			}
			dead, seen := &letterBox{}, &attempts{}
			settings, handler := poison(0, seen, dead)
			quick := func(c *ackpolicy.SubscriberConfig) { c.CommitInterval = 10 * time.Millisecond }
			last := consume(t, config(group, rebalance, settings, quick), topic, handler, ackpolicy.NackOnError.Middleware)
			for range 3 { // another member comes, and the former one goes
				eventually(t, "an attempt", func() bool { return seen.count(0) > 0 })
				next := consume(t, config(group, rebalance, settings, quick), topic, handler, ackpolicy.NackOnError.Middleware)
				awaitTwo(t, shared, group)
				last.stop()
				last = next
			}
			waitCommitted(t, group, topic, 0, 1)
			waitCommitted(t, group, topic, 1, 1)
			last.stop()
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
}

// A delay goes on over a restart: the record is not delivered before it is due, and then with the next attempt.
func TestDelayOverRestart(t *testing.T) {
	t.Parallel()
	for name, order := range orderings() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, keyed("a", "b", "a")...)
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
			s := consume(t, config(group, order), topic, handler, ackpolicy.NackOnError.Middleware)
			eventually(t, "the nack", func() bool { return nacked.Load() > 0 })
			s.stop()
			began := time.Now()
			s = consume(t, config(group, order), topic, handler, ackpolicy.NackOnError.Middleware)
			waitCommitted(t, group, topic, 0, 3)
			s.stop()
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
			group, topic := brokertest.Group(t), newTopic(t, 1, keyed("a")...)
			var seen attempts
			var succeed atomic.Bool
			run := func() *service {
				return consume(t, config(group, func(c *ackpolicy.SubscriberConfig) {
					c.Backoff = func(int, error) time.Duration { return time.Hour }
				}), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
					if seen.add(d); !succeed.Load() {
						return errBoom
					}
					return nil
				}, ackpolicy.NackOnError.Middleware)
			}
			s := run()
			eventually(t, "the nack", func() bool { return seen.count(0) == 1 })
			s.stop()
			position := fetchStored(t, group, topic)
			at := stored.Place{Topic: topic, Offset: position.Offset}
			l, err := stored.Decode(at, position.Metadata)
			check(t, err)
			if len(l.Open) != 1 || l.Open[0].Attempts != 1 || l.Open[0].Due.IsZero() || l.TopicID == (sarama.Uuid{}) {
				t.Fatalf("stored: %+v", l)
			}
			change(l)
			position.Metadata, _ = stored.Encode(at, l, stored.DefaultRoom)
			store(t, group, topic, position)
			succeed.Store(true)
			s = run()
			waitCommitted(t, group, topic, 0, 1)
			s.stop()
			if got := seen.of(0); got != "[1 1]" {
				t.Errorf("attempts %s", got)
			}
		})
	}
}

// The age of a record goes on over a restart: at its second delivery it is too old to be nacked.
func TestMaxAgeOverRestart(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, keyed("a")...)
	dead, seen := &letterBox{}, &attempts{}
	settings := func(c *ackpolicy.SubscriberConfig) { c.MaxAge, c.DeadLetter = time.Second, dead }
	handler := func(_ *message.Message, d *ackpolicy.Delivery) error {
		seen.add(d)
		return ackpolicy.NackAfter(1500 * time.Millisecond)
	}
	s := consume(t, config(group, settings), topic, handler, ackpolicy.NackOnError.Middleware)
	eventually(t, "the nack", func() bool { return seen.count(0) == 1 })
	s.stop()
	s = consume(t, config(group, settings), topic, handler, ackpolicy.NackOnError.Middleware)
	waitCommitted(t, group, topic, 0, 1)
	s.stop()
	if got := seen.of(0); got != "[1 2]" || len(dead.all()) != 1 {
		t.Errorf("attempts %s, %d letters", got, len(dead.all()))
	}
}
