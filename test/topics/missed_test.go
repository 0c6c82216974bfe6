package topics_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A broker that does not know a topic for a moment, as one that has just started, does not make a member join again.
func TestTopicMissedOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		selection string
		asked     int // how many topics the member's look for changes names; 0 for all
	}{
		"list":    {"orders,invoices", 2},
		"pattern": {"order?", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t)
			for _, topic := range []string{"orders", "invoices"} {
				testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, partitions))
			}
			var assigned atomic.Int32
			cfg := testkit.Config(brokertest.Group(t), soon)
			cfg.Kafka.Brokers = broker.Addrs()
			cfg.Hooks.Assigned = func(ackpolicy.AssignedEvent) { assigned.Add(1) }
			s := testkit.Consume(t, cfg, c.selection, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			handle := func() {
				_, err := brokertest.Produce(broker.Addrs(), "orders", 0, testkit.Numbered(1)...)
				testkit.Check(t, err)
			}
			handle()
			s.Wait(t, 1)
			before := assigned.Load()
			look := kfake.Fault{
				Keys: []kmsg.Key{kmsg.Metadata}, Topic: "orders", Err: kerr.UnknownTopicOrPartition,
				When: func(r kmsg.Request) bool { return len(r.(*kmsg.MetadataRequest).Topics) == c.asked },
			}
			testkit.Check(t, broker.Kfake().Fault(look).Wait(t.Context(), 1))
			look.Observe, look.Count = true, -1
			testkit.Check(t, broker.Kfake().Fault(look).Wait(t.Context(), 2))
			handle()
			s.Wait(t, 2)
			s.Stop()
			if n := assigned.Load(); n != before {
				t.Errorf("partitions were assigned %d times, before %d", n, before)
			}
		})
	}
}

// One request brings the stored positions of all topics: a claim waits for a limited time for its own.
func TestPositionsOfManyTopics(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topics := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}
	for _, topic := range topics {
		testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, 1))
		_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(1)...)
		testkit.Check(t, err)
	}
	asked := broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Observe: true, Count: -1})
	cfg := testkit.Config(brokertest.Group(t))
	cfg.Kafka.Brokers = broker.Addrs()
	s := testkit.Consume(t, cfg, strings.Join(topics, ","), testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, len(topics))
	s.Stop()
	if n := asked.Hits(); n > len(topics)+2 { // sarama has one for each
		t.Errorf("%d requests for the positions of %d partitions", n, len(topics))
	}
}
