package faults_test

import (
	"flag"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var refusal = flag.Duration("refusal", 3*time.Second, "how long TestCommitsRefusedForLong has commits refused")

// While commits are refused, handlers continue up to MaxUncommitted. Then the partition is paused, and log and hook name
// the commit as the reason, not a record. Once commits work again, all records are handled once, and committed.
func TestCommitsRefusedForLong(t *testing.T) {
	t.Parallel()
	for _, order := range []ackpolicy.Ordering{ackpolicy.OrderByPartition, ackpolicy.OrderByKey, ackpolicy.Unordered} {
		t.Run(order.String(), func(t *testing.T) {
			t.Parallel()
			const bound, records = 20, 100
			broker := brokertest.NewFake(t)
			topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(records)...)
			group := brokertest.Group(t)
			fault, began := testkit.RefuseCommits(broker, -1), time.Now()
			stuck := make(chan ackpolicy.BlockedEvent, 10)
			cfg := testkit.Config(group, at, testkit.Ordering(order, 0))
			cfg.MaxUncommitted = bound
			cfg.Hooks.Blocked = func(e ackpolicy.BlockedEvent) { stuck <- e }
			s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			healed := time.After(*refusal)
			e := testkit.Await(t, "the hook", stuck)
			if e.Bound != "MaxUncommitted" || e.Offset != bound || e.Err == nil {
				t.Errorf("the hook got %+v", e)
			}
			testkit.Eventually(t, "a line", func() bool {
				return len(testkit.Containing(s.Log.At("error"), "Partition paused", "commits fail", topic, "offset=20", "err=kafka server")) == 1
			})
			<-healed
			if n := len(s.All()); n != bound {
				t.Errorf("%d records delivered while nothing is committed, want %d", n, bound)
			}
			if len(stuck) > 0 {
				t.Errorf("reported again: %+v", <-stuck)
			}
			fault.Remove()
			// An error line after 5 s, then ever fewer.
			reported, failing := len(testkit.Containing(s.Log.At("error"), "Commits keep failing")), time.Since(began)
			if reported > 1+int(failing/(10*time.Second)) || reported > 4 || *refusal > 10*time.Second && reported == 0 {
				t.Errorf("%d error lines in %v", reported, failing)
			}
			testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, records, testkit.Patience))
			s.Stop()
			if n := len(s.All()); n != records {
				t.Errorf("%d deliveries of %d records", n, records)
			}
		})
	}
}

// Nothing is lost or repeated while commits are refused for a while, and AckSync waits for the commit that succeeds.
func TestRefusedCommits(t *testing.T) {
	t.Parallel()
	const records, refused = 5, 3
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(records)...)
	group := brokertest.Group(t)
	fault := testkit.RefuseCommits(broker, refused)
	var failed atomic.Int32
	hook := func(c *ackpolicy.SubscriberConfig) {
		c.Hooks.CommitFailed = func(ackpolicy.CommitFailedEvent) { failed.Add(1) }
	}
	s := testkit.Consume(t, testkit.Config(group, at, testkit.CommitOnDemand, hook), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if err := d.AckSync(msg.Context()); err != nil || fault.Hits() < refused {
			t.Errorf("%s: %v after %d refusals", testkit.Name(d), err, fault.Hits())
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	s.Wait(t, records)
	s.Stop()
	stored, err := brokertest.Committed(broker.Addrs(), group, topic, 0)
	if err != nil || stored != records || failed.Load() != refused || len(s.All()) != records {
		t.Errorf("stored %d, %v; %d failures reported; deliveries %v", stored, err, failed.Load(), s.Names())
	}
}
