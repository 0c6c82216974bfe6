package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Settling after a revocation returns false and commits nothing over the new owner's offset.
func TestLateSettlementAfterRevocation(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		const partitions, records = 2, 3
		group, topic := brokertest.Group(t), testkit.FilledTopic(t, partitions, records)
		old := testkit.Consume(t, testkit.Config(group, rebalance), topic, testkit.Succeed, ackpolicy.Manual.Middleware)
		old.Wait(t, partitions*records) // all pending
		pending := old.All()

		successor := testkit.Consume(t, testkit.Config(group, rebalance), topic, testkit.Succeed, ackpolicy.Ack.Middleware)
		moved := successor.Wait(t, records).Partition()
		testkit.WaitCommitted(t, group, topic, moved, records)
		for _, d := range pending {
			if d.Partition() != moved {
				continue
			}
			if d.Ack() || d.Nack() || d.Reject(nil) || d.AckCumulative() || d.Status() != ackpolicy.Revoked {
				t.Errorf("%s settled after its partition was revoked: %v", testkit.Name(d), d.Status())
			}
			if err := d.AckSync(context.Background()); !errors.Is(err, ackpolicy.ErrRevoked) {
				t.Errorf("AckSync: %v", err)
			}
		}

		// What stayed, or came back, is settled: its commit leaves the other one alone.
		kept := 1 - moved
		testkit.Eventually(t, "the offset of the partition that stayed", func() bool {
			for _, d := range old.All() {
				if d.Partition() == kept {
					d.Ack()
				}
			}
			stored, err := brokertest.Committed(testkit.Shared.Addrs(), group, topic, kept)
			return err == nil && stored == records
		})
		testkit.WantCommitted(t, group, topic, moved, records)
		old.Stop()
		successor.Stop()
		testkit.WantCommitted(t, group, topic, moved, records)
		testkit.WantCommitted(t, group, topic, kept, records)
		if n := len(successor.All()); n != records {
			t.Errorf("the successor had %d deliveries: %v", n, successor.Names())
		}
	})
}

// A revocation lets running handlers finish and commits what they settle: the new owner does not get it again. One that
// takes too long has its context cancelled.
func TestRevocationDrains(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		const partitions = 2
		group, topic := brokertest.Group(t), testkit.FilledTopic(t, partitions, 1)
		old := testkit.Consume(t, testkit.Config(group, rebalance), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
			return testkit.Until(msg.Context(), d.Draining())
		}, ackpolicy.NackOnError.Middleware)
		old.Wait(t, partitions)
		successor := testkit.Consume(t, testkit.Config(group, rebalance), topic,
			testkit.Succeed, ackpolicy.NackOnError.Middleware)
		testkit.AwaitGroupOfTwo(t, testkit.Shared, group)
		for p := range int32(partitions) {
			testkit.Produce(t, topic, p, testkit.Numbered(2)[1:]...)
		}
		successor.Wait(t, 1)
		old.Stop()
		for p := range int32(partitions) {
			testkit.WaitCommitted(t, group, topic, p, 2)
		}
		successor.Stop()
		seen := map[string]int{}
		for _, d := range append(old.All(), successor.All()...) {
			seen[fmt.Sprintf("%d/%d", d.Partition(), d.Offset())]++
		}
		for record, n := range seen {
			if n > 1 {
				t.Errorf("%s was delivered %d times", record, n)
			}
		}
	})
}

func TestRevocationCancelsWithItsCause(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		const partitions = 2
		group, topic := brokertest.Group(t), testkit.FilledTopic(t, partitions, 1)
		causes := make(chan error, 2*partitions)
		cfg := testkit.Config(group, rebalance, testkit.DrainTimeout(300*time.Millisecond))
		old := testkit.Consume(t, cfg, topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
			<-msg.Context().Done()
			causes <- context.Cause(msg.Context())
			return msg.Context().Err()
		}, ackpolicy.NackOnError.Middleware)
		old.Wait(t, partitions)
		successor := testkit.Consume(t, testkit.Config(group, rebalance), topic,
			testkit.Succeed, ackpolicy.NackOnError.Middleware)
		if cause := testkit.Await(t, "the end of a context", causes); !errors.Is(cause, ackpolicy.ErrRevoked) {
			t.Errorf("cause: %v", cause)
		}
		d := successor.Wait(t, 1)
		testkit.WaitCommitted(t, group, topic, d.Partition(), 1)
		old.Stop()
		successor.Stop()
	})
}

// A revocation takes no longer than DrainTimeout for handlers that do not end.
func TestRevocationKeepsDrainTimeout(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 2)
	testkit.Produce(t, topic, 0, testkit.Numbered(1)...)
	testkit.Produce(t, topic, 1, testkit.Numbered(1)...)
	cfg := testkit.Config(group, testkit.DrainTimeout(300*time.Millisecond))
	release := make(chan struct{})
	s := testkit.Consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error {
		<-release // whatever its context says
		return nil
	}, ackpolicy.NackOnError.Middleware)
	d := s.Wait(t, 2)
	other := testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
	out, err := other.Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	go func() {
		for msg := range out {
			msg.Ack()
		}
	}()
	testkit.Await(t, "the drain", d.Draining())
	began := time.Now()
	testkit.Eventually(t, "its end", func() bool { return d.Status() == ackpolicy.Revoked })
	if took := time.Since(began); took > 3*time.Second { // a quarter of Rebalance.Timeout is 5 s
		t.Errorf("the drain took %v", took)
	}
	close(release)
	testkit.Check(t, other.Close())
	s.Stop()
}

// On a revocation the same holds: the other member gets its partition, and what was settled is not delivered again.
func TestRevocationLeavesWhatHangs(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, change testkit.Option) {
		trap := newSnare()
		group, topic := brokertest.Group(t), testkit.FilledTopic(t, 2, 3)
		cfg := testkit.Config(group, testkit.DrainTimeout(300*time.Millisecond), change)
		cfg.DeadLetter = hangingLetters{trap}
		reject := func(_ *message.Message, d *ackpolicy.Delivery) error {
			if d.Offset() == 1 {
				return ackpolicy.ErrReject
			}
			return nil
		}
		first := testkit.Consume(t, cfg, topic, reject, ackpolicy.NackOnError.Middleware)
		defer close(trap.free)
		first.Wait(t, 6)
		other := testkit.Config(group, change)
		began := time.Now()
		second := testkit.Consume(t, other, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
		second.Wait(t, 1)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the other member had to wait %v", took)
		}
		if o := second.All()[0].Offset(); o != 1 {
			t.Errorf("the other member begins at %d, want 1", o)
		}
		second.Stop()
		wantClosed(t, first.Stop, 300*time.Millisecond)
	})
}
