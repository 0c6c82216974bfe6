package letters_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// picky stores letters but for those of some offsets, which it refuses for good.
type picky struct {
	mu     sync.Mutex
	stored []int64
	wrong  func(offset int64) bool
	before func(ctx context.Context, offset int64) error // may be nil
}

// forGood is an error that another attempt does not change.
type forGood struct{ error }

func (forGood) Permanent() bool { return true }

func (p *picky) Send(ctx context.Context, _ *sarama.ConsumerMessage, l ackpolicy.Letter) error {
	if p.before != nil {
		if err := p.before(ctx, l.Offset); err != nil {
			return err
		}
	}
	if p.wrong != nil && p.wrong(l.Offset) {
		return fmt.Errorf("no such tenant: %w", forGood{testkit.ErrPoison})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stored = append(p.stored, l.Offset)
	return nil
}

func (p *picky) all() []int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.stored)
}

func dead(d ackpolicy.DeadLetter) testkit.Option {
	return func(c *ackpolicy.SubscriberConfig) { c.DeadLetter = d }
}

// Letters that are refused for good delay no others, and the log says what holds the commit.
func TestRefusedLettersAmongOthers(t *testing.T) {
	t.Parallel()
	const records = 1000
	topic := testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	letters := &picky{wrong: func(offset int64) bool { return offset%50 == 3 }}
	cfg := testkit.Config(brokertest.Group(t), dead(letters))
	s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "all others' letters", func() bool { return len(letters.all()) == records-records/50 })
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 3)
	if lines := testkit.Containing(s.Log.At("error"), "refused for good", "no such tenant"); len(lines) == 0 || len(lines) > 2 {
		t.Errorf("the log: %v", lines)
	}
	s.Stop() // and at once: a drain does not wait for what is refused
	testkit.WantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 3)
	if lines := testkit.Containing(s.Log.At("error"), "released before"); len(lines) > 0 {
		t.Errorf("the drain waited: %v", lines)
	}
}

// With UnstorableGiveUp their records are given up, each with a line.
func TestRefusedLettersAreGivenUp(t *testing.T) {
	t.Parallel()
	const records = 100
	topic := testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	letters := &picky{wrong: func(offset int64) bool { return offset%50 == 3 }}
	cfg := testkit.Config(brokertest.Group(t), dead(letters))
	cfg.OnUnstorable = ackpolicy.UnstorableGiveUp
	var givenUp atomic.Int32
	cfg.Hooks.DeadLettered = func(e ackpolicy.DeadLetteredEvent) {
		if e.GivenUp && errors.As(e.Err, new(forGood)) {
			givenUp.Add(1)
		}
	}
	s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, records)
	s.Stop()
	if n := len(letters.all()); n != records-2 || givenUp.Load() != 2 {
		t.Errorf("%d letters, %d given up", n, givenUp.Load())
	}
	for _, offset := range []string{"3", "53"} {
		if lines := testkit.Containing(s.Log.At("error"), "is given up", "kafka_partition_offset="+offset+" "); len(lines) != 1 {
			t.Errorf("the log of record %s: %v", offset, lines)
		}
	}
}

// A Send that panics, ends its goroutine or does not return costs that letter's attempt only.
func TestSendMisbehaves(t *testing.T) {
	t.Parallel()
	for name, misbehave := range map[string]func(){
		"panic":  func() { panic("boom") },
		"goexit": runtime.Goexit,
		"nil":    func() { panic(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const records = 100
			topic := testkit.NewTopic(t, 1, testkit.Numbered(records)...)
			var attempts atomic.Int32
			letters := &picky{before: func(_ context.Context, offset int64) error {
				if offset%4 == 0 && attempts.Add(1) <= 2*records/4 {
					misbehave()
				}
				return nil
			}}
			cfg := testkit.Config(brokertest.Group(t), dead(letters))
			s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
			testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, records)
			s.Stop()
			if n := len(letters.all()); n != records {
				t.Errorf("%d letters", n)
			}
			if len(testkit.Containing(s.Log.At("error"), "Dead letter not stored", "the DeadLetter")) == 0 || len(testkit.Containing(s.Log.At("info"), "Dead letters are stored again", "failing_for")) == 0 {
				t.Error("the log does not say what happened, or not that it is over")
			}
		})
	}
}

// A Send that hangs, whatever becomes of its context, delays neither the letters of others nor Close.
func TestSendHangs(t *testing.T) {
	t.Parallel()
	const records = 100
	topic := testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	release := make(chan struct{})
	var hanging sync.WaitGroup
	letters := &picky{before: func(_ context.Context, offset int64) error {
		if offset == 7 {
			hanging.Add(1)
			defer hanging.Done()
			<-release
		}
		return nil
	}}
	cfg := testkit.Config(brokertest.Group(t), dead(letters), testkit.DrainTimeout(300*time.Millisecond))
	s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "all others' letters", func() bool { return len(letters.all()) == records-1 })
	began := time.Now()
	s.Stop()
	if took := time.Since(began); took > 5*time.Second+300*time.Millisecond {
		t.Errorf("Close took %v", took)
	}
	close(release)
	hanging.Wait()
	testkit.WantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 7)
	if len(testkit.Containing(s.Log.At("error"), "DeadLetter.Send does not return")) != 1 {
		t.Error("nothing was reported")
	}
}

// Letters of a key keep the order of their rejections, also when one of them has to be
// tried again; only one that is refused for good is passed.
func TestLettersOfAKeyKeepTheirOrder(t *testing.T) {
	t.Parallel()
	const records, keys = 300, 3
	all := make([]brokertest.Record, records)
	for i := range all {
		all[i] = brokertest.KeyValue(fmt.Sprint(i%keys), fmt.Sprint(i))
	}
	topic := testkit.NewTopic(t, 1, all...)
	var tries atomic.Int32
	letters := &picky{
		wrong: func(offset int64) bool { return offset == 5 },
		before: func(context.Context, int64) error {
			if tries.Add(1)%7 == 0 {
				return testkit.ErrBoom
			}
			return nil
		},
	}
	cfg := testkit.Config(brokertest.Group(t), dead(letters), testkit.Ordering(ackpolicy.OrderByKey, 8))
	s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "the letters", func() bool { return len(letters.all()) == records-1 })
	s.Stop()
	last := map[int64]int64{}
	for _, offset := range letters.all() {
		if offset < last[offset%keys] {
			t.Fatalf("key %d: %d after %d", offset%keys, offset, last[offset%keys])
		}
		last[offset%keys] = offset
	}
}

// An outage of the destination costs a few lines, the last of which says that it is
// over; and all letters are stored within 2 s. It measures: no other test runs meanwhile.
func TestLettersAfterAnOutage(t *testing.T) {
	const partitions, records = 4, 250
	topic := testkit.FilledTopic(t, partitions, records)
	var down atomic.Bool
	var failed atomic.Int32
	down.Store(true)
	letters := &picky{before: func(context.Context, int64) error {
		if down.Load() {
			failed.Add(1)
			return testkit.ErrBoom
		}
		return nil
	}}
	cfg := testkit.Config(brokertest.Group(t), dead(letters))
	s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	s.Wait(t, partitions*records)
	testkit.Eventually(t, "an attempt at each letter", func() bool { return failed.Load() >= partitions*records })
	down.Store(false)
	began := time.Now()
	testkit.Eventually(t, "the letters", func() bool { return len(letters.all()) == partitions*records })
	if took := time.Since(began); took > 2*time.Second*testkit.Slower {
		t.Errorf("%v after the outage", took)
	}
	for p := range int32(partitions) {
		testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, p, records)
	}
	s.Stop()
	reported, over := testkit.Containing(s.Log.At("error"), "Dead letter not stored"), testkit.Containing(s.Log.At("info"), "Dead letters are stored again")
	if len(reported) == 0 || len(reported) > 3 || len(over) != 1 {
		t.Errorf("%d lines, %d that it is over: %s", len(reported), len(over), strings.Join(append(reported, over...), "\n"))
	}
}

// Rejected records that wait for their letter leave memory, as any that wait, and are read again.
func TestRejectedRecordsLeaveMemory(t *testing.T) {
	t.Parallel()
	const records, size = 850, 30_000 // 24 MiB
	topic := testkit.NewTopic(t, 1, testkit.Sized(records, size)...)
	dead := &testkit.Flaky{}
	dead.Down.Store(true)
	cfg := testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.OrderByKey, 16))
	cfg.DeadLetter, cfg.MaxBufferedBytes = dead, 8*testkit.MiB
	s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	s.Wait(t, records)
	dead.Down.Store(false)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, records)
	s.Stop()
	if n := dead.Sent.Load(); n != records {
		t.Errorf("%d letters", n)
	}
}
