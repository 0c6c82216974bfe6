package ackpolicy_test

import (
	"flag"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

var refusal = flag.Duration("refusal", 3*time.Second, "how long TestCommitsRefusedForLong has commits refused")

// While commits are refused, handlers go on up to MaxUncommitted. Then the partition is paused, and what is told names
// the commit as the reason, not a record. Once it heals, all is handled once, and committed.
func TestCommitsRefusedForLong(t *testing.T) {
	t.Parallel()
	for _, order := range []ackpolicy.Ordering{ackpolicy.OrderByPartition, ackpolicy.OrderByKey, ackpolicy.Unordered} {
		t.Run(order.String(), func(t *testing.T) {
			t.Parallel()
			const bound, records = 20, 100
			broker := brokertest.NewFake(t)
			topic, at := fakeTopic(t, broker, numbered(records)...)
			group := brokertest.Group(t)
			fault := refuseCommits(broker, -1)
			stuck := make(chan ackpolicy.StuckEvent, 10)
			cfg := config(group, at, ordering(order, 0))
			cfg.MaxUncommitted = bound
			cfg.Hooks.Stuck = func(e ackpolicy.StuckEvent) { stuck <- e }
			s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
			healed := time.After(*refusal)
			e := await(t, "the hook", stuck)
			if e.Bound != "MaxUncommitted" || e.Offset != bound || e.Err == nil {
				t.Errorf("the hook was told %+v", e)
			}
			if len(with(s.log.at("error"), "Partition paused", "commits fail", topic, "offset=20", "err=kafka server")) != 1 {
				t.Errorf("not in the log: %v", s.log.at("error"))
			}
			<-healed
			if n := len(s.journal.all()); n != bound {
				t.Errorf("%d records delivered while nothing is committed, want %d", n, bound)
			}
			if len(stuck) > 0 {
				t.Errorf("told again: %+v", <-stuck)
			}
			fault.Remove()
			check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, records, patience))
			s.stop()
			if n := len(s.journal.all()); n != records {
				t.Errorf("%d deliveries of %d records", n, records)
			}
		})
	}
}
