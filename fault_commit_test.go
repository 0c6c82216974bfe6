package ackpolicy_test

import (
	"flag"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

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
			fault, began := refuseCommits(broker, -1), time.Now()
			stuck := make(chan ackpolicy.BlockedEvent, 10)
			cfg := config(group, at, ordering(order, 0))
			cfg.MaxUncommitted = bound
			cfg.Hooks.Blocked = func(e ackpolicy.BlockedEvent) { stuck <- e }
			s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
			healed := time.After(*refusal)
			e := await(t, "the hook", stuck)
			if e.Bound != "MaxUncommitted" || e.Offset != bound || e.Err == nil {
				t.Errorf("the hook was told %+v", e)
			}
			eventually(t, "a line", func() bool {
				return len(with(s.log.at("error"), "Partition paused", "commits fail", topic, "offset=20", "err=kafka server")) == 1
			})
			<-healed
			if n := len(s.journal.all()); n != bound {
				t.Errorf("%d records delivered while nothing is committed, want %d", n, bound)
			}
			if len(stuck) > 0 {
				t.Errorf("told again: %+v", <-stuck)
			}
			fault.Remove()
			// An error line after 5 s, then ever fewer.
			told, failing := len(with(s.log.at("error"), "Commit keeps failing")), time.Since(began)
			if told > 1+int(failing/(10*time.Second)) || told > 4 || *refusal > 10*time.Second && told == 0 {
				t.Errorf("%d error lines in %v", told, failing)
			}
			check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, records, patience))
			s.stop()
			if n := len(s.journal.all()); n != records {
				t.Errorf("%d deliveries of %d records", n, records)
			}
		})
	}
}

// A partition that a bound has paused is not fetched any more, and all of it comes once there is room.
func TestPausedPartitionIsNotFetched(t *testing.T) {
	t.Parallel()
	const bound, records = 10, 400
	broker := brokertest.NewFake(t)
	topic, at := fakeTopicOf(t, broker, 1)
	for i := 0; i < records; i += 20 { // batches that a fetch can tell apart
		_, err := brokertest.Produce(broker.Addrs(), topic, 0, large(20, 5_000)...)
		check(t, err)
	}
	var asked atomic.Int64 // the highest offset
	broker.Kfake().ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		broker.Kfake().KeepControl()
		for _, topic := range request.(*kmsg.FetchRequest).Topics {
			for _, p := range topic.Partitions {
				asked.Store(max(asked.Load(), p.FetchOffset))
			}
		}
		return nil, nil, false
	})
	stuck, release := make(chan ackpolicy.BlockedEvent, 10), make(chan struct{})
	group := brokertest.Group(t)
	cfg := config(group, at)
	cfg.MaxUncommitted = bound
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Fetch.Default = 100_000
	cfg.Kafka.OverwriteSaramaConfig.ChannelBufferSize = 0
	cfg.Hooks.Blocked = func(e ackpolicy.BlockedEvent) { stuck <- e }
	s := consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		return until(msg.Context(), release)
	}, ackpolicy.NackOnError.Middleware)
	await(t, "the hook", stuck) // after seconds in which all could have come
	if at := asked.Load(); at == records {
		t.Error("fetched to the end though paused")
	}
	close(release)
	check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, records, patience))
	s.stop()
}
