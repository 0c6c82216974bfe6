package lifecycle_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// static makes the member a static one, which the broker keeps for longer than a restart takes.
func static(id string, session time.Duration) testkit.Option {
	return func(c *ackpolicy.SubscriberConfig) {
		group := &c.Kafka.OverwriteSaramaConfig.Consumer.Group
		group.InstanceId, group.Session.Timeout = id, session
	}
}

// handled counts, by handler, the topics of the records that it got.
type handled struct {
	mu     sync.Mutex
	topics map[string]map[string]int
}

func (h *handled) by(handler string) testkit.Handle {
	return func(_ *message.Message, d *ackpolicy.Delivery) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.topics == nil {
			h.topics = map[string]map[string]int{}
		}
		if h.topics[handler] == nil {
			h.topics[handler] = map[string]int{}
		}
		h.topics[handler][d.Topic()]++
		return nil
	}
}

// wantOnly asserts that each handler got the records of the topic of its name, each once, and no others.
func (h *handled) wantOnly(t *testing.T, want map[string]int) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for handler, topics := range h.topics {
		for topic, n := range topics {
			if topic != handler {
				t.Errorf("%d records of %s in the handler of %s", n, topic, handler)
			}
		}
	}
	for topic, n := range want {
		if got := h.topics[topic][topic]; got != n {
			t.Errorf("the handler of %s got %d of %d records", topic, got, n)
		}
	}
}

// serve runs one Router with a handler for each topic, of its name, all behind one Subscriber.
func serve(t *testing.T, cfg ackpolicy.SubscriberConfig, done *handled, topics ...string) *testkit.Service {
	t.Helper()
	s := testkit.NewService(t)
	s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	sub := testkit.NewSubscriber(t, cfg, s.Log)
	for _, topic := range topics {
		s.Router.AddConsumerHandler(topic, topic, sub, s.Recorded(done.by(topic)))
	}
	s.Start(t)
	return s
}

// Two handlers of one static Subscriber, started again and again in the random order of Watermill's Router: each gets
// the records of its own topic, and all of them.
func TestStaticHandlersKeepTheirTopics(t *testing.T) {
	t.Parallel()
	const starts, each = 20, 5
	group := brokertest.Group(t)
	a, b := testkit.NewTopic(t, 1), testkit.NewTopic(t, 1)
	done := &handled{}
	for i := range starts {
		testkit.Produce(t, a, 0, testkit.Numbered(each)...)
		testkit.Produce(t, b, 0, testkit.Numbered(each)...)
		s := serve(t, testkit.Config(group, static("static", testkit.Patience)), done, a, b)
		for _, topic := range []string{a, b} {
			testkit.WaitCommitted(t, group, topic, 0, int64((i+1)*each))
		}
		s.Stop()
	}
	done.wantOnly(t, map[string]int{a: starts * each, b: starts * each})
}

// Two Subscribers of one process with one static id, and one that reads a topic twice: none fences another.
func TestStaticSubscribersShareAnID(t *testing.T) {
	t.Parallel()
	const each = 5
	group := brokertest.Group(t)
	a, b := testkit.NewTopic(t, 2), testkit.NewTopic(t, 1)
	done := &handled{}
	first := serve(t, testkit.Config(group, static("static", testkit.Patience)), done, a)
	second := serve(t, testkit.Config(group, static("static", testkit.Patience)), done, b)
	third := serve(t, testkit.Config(group, static("static", testkit.Patience)), done, a)
	testkit.Eventually(t, "a group of three", func() bool {
		n, state, err := brokertest.Members(testkit.Shared.Addrs(), group)
		return err == nil && n == 3 && state == "Stable"
	})
	for i := range int64(3) {
		for _, at := range []struct {
			topic     string
			partition int32
		}{{a, 0}, {a, 1}, {b, 0}} {
			testkit.Produce(t, at.topic, at.partition, testkit.Numbered(each)...)
			testkit.WaitCommitted(t, group, at.topic, at.partition, (i+1)*each)
		}
	}
	for _, s := range []*testkit.Service{first, second, third} {
		s.Stop()
		if lines := testkit.Containing(s.Log.At("error"), "fenced"); len(lines) > 0 {
			t.Errorf("fenced:\n%s", lines)
		}
	}
	done.wantOnly(t, map[string]int{a: 6 * each, b: 3 * each})
}

// A static Subscriber that comes back with another topic gets the records of that one, and leaves those of the old one.
func TestStaticMemberChangesItsTopic(t *testing.T) {
	t.Parallel()
	group := brokertest.Group(t)
	before, after := testkit.NewTopic(t, 1, testkit.Numbered(3)...), testkit.NewTopic(t, 1, testkit.Numbered(5)...)
	done := &handled{}
	s := serve(t, testkit.Config(group, static("static", 6*time.Second)), done, before)
	testkit.WaitCommitted(t, group, before, 0, 3)
	s.Stop()
	testkit.Produce(t, before, 0, testkit.Numbered(4)...)
	s = serve(t, testkit.Config(group, static("static", 6*time.Second)), done, after)
	testkit.WaitCommitted(t, group, after, 0, 5)
	s.Stop()
	testkit.WantCommitted(t, group, before, 0, 3)
	done.wantOnly(t, map[string]int{before: 3, after: 5})
}

// foreignMember is a member of the group that is not ours. It closes a channel when its membership begins, and one when it ends.
type foreignMember struct {
	joined, left chan struct{}
	stop         func()
}

func (m *foreignMember) Setup(sarama.ConsumerGroupSession) error { close(m.joined); return nil }

func (m *foreignMember) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (m *foreignMember) ConsumeClaim(_ sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for range claim.Messages() { //nolint:revive // nothing is to be done with them
	}
	return nil
}

// joinForeign joins a group as a stock client with a static id, and is a member for one session at most.
func joinForeign(t *testing.T, group, id, topic string, changes ...testkit.Option) *foreignMember {
	t.Helper()
	cfg := testkit.Config(group, append(changes, static(id, testkit.Patience))...).Kafka.OverwriteSaramaConfig
	cfg.Consumer.Return.Errors = false
	g, err := sarama.NewConsumerGroup(testkit.Shared.Addrs(), group, cfg)
	testkit.Check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	m := &foreignMember{joined: make(chan struct{}), left: make(chan struct{})}
	go func() {
		defer close(m.left)
		_ = g.Consume(ctx, []string{topic}, m)
	}()
	m.stop = sync.OnceFunc(func() {
		cancel()
		<-m.left
		_ = g.Close()
	})
	t.Cleanup(m.stop)
	testkit.Await(t, "the membership of "+id, m.joined)
	return m
}

// A broker that hands a static member the partitions which its id had before, of a topic that it does not
// subscribe to: none of their records reach the handler, nothing is committed for them, the log says so, and the member gets its own.
func TestStaticMemberGetsAnotherTopicsPartitions(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		group := brokertest.Group(t)
		other, topic := testkit.NewTopic(t, 1, testkit.Numbered(4)...), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
		testkit.Check(t, brokertest.ResetOffset(testkit.Shared.Addrs(), group, other, 0, 1))
		id := "static-" + topic // what our Subscriber makes of its id
		joinForeign(t, group, id, other, rebalance).stop()
		done := &handled{}
		s := serve(t, testkit.Config(group, rebalance, static("static", testkit.Patience)), done, topic)
		testkit.WaitCommitted(t, group, topic, 0, 3)
		s.Stop()
		testkit.WantCommitted(t, group, other, 0, 1)
		done.wantOnly(t, map[string]int{topic: 3})
		reported := testkit.Containing(s.Log.At("error"), "another topic", "topic="+other, "kafka_partition=0", "group_instance_id="+id)
		if testkit.Shared.Real() && len(reported) == 0 { // kfake asks for the subscription, and rebalances
			t.Error("nothing was reported")
		}
		if len(reported) > 1 {
			t.Errorf("reported %d times", len(reported))
		}
	})
}

// A second process takes over the static id: the subscription of the first ends, its Router with it, and it says so once. It does
// not fence the other one.
func TestStaticIDTakenOver(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
		done := &handled{}
		s := serve(t, testkit.Config(group, rebalance, static("static", testkit.Patience)), done, topic)
		testkit.WaitCommitted(t, group, topic, 0, 2)
		other := joinForeign(t, group, "static-"+topic, topic, rebalance)
		testkit.Await(t, "the end of the Router", s.Ended)
		reported := testkit.Containing(s.Log.At("error"), "static member id", "group_instance_id=static-"+topic)
		if len(reported) != 1 {
			t.Errorf("reported %d times: %v", len(reported), reported)
		}
		if more := slices.DeleteFunc(s.Log.At("error"), func(l string) bool {
			return slices.Contains(reported, l) || len(testkit.Containing([]string{l}, "All handlers stopped")) > 0
		}); len(more) > 0 {
			t.Errorf("more errors: %v", more)
		}
		select {
		case <-other.left:
			t.Error("the other process was fenced, too")
		default:
		}
		other.stop()
	})
}

// Partitions that were added while a static member was away, or after it was back, are read: nobody else looks for them, for the broker
// gives it its old assignment without making it the leader.
func TestStaticMemberFindsAddedPartitions(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]bool{"away": true, "back": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
			done := &handled{}
			cfg := testkit.Config(group, static("static", testkit.Patience))
			cfg.Kafka.OverwriteSaramaConfig.Metadata.RefreshFrequency = 200 * time.Millisecond
			s := serve(t, cfg, done, topic)
			testkit.WaitCommitted(t, group, topic, 0, 1)
			s.Stop()
			add := func() {
				testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error { return a.CreatePartitions(topic, 3, nil, false) })
				for p := range int32(3) {
					testkit.Produce(t, topic, p, testkit.Numbered(2)...)
				}
			}
			if away {
				add()
			}
			s = serve(t, cfg, done, topic)
			testkit.Eventually(t, "its return", func() bool { return len(testkit.Containing(s.Log.At("info"), "Joined the consumer group")) > 0 })
			if !away {
				add()
			}
			for p := range int32(3) {
				testkit.WaitCommitted(t, group, topic, p, []int64{3, 2, 2}[p])
			}
			s.Stop()
		})
	}
}

// Static member ids are what Kafka takes, and different for whatever subscriptions one id has.
func TestInstanceIDs(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("t", 249) // the longest topic
	seen := map[string]string{}
	for _, topic := range []string{"orders", "orders-2", "2.orders", "-orders", ".2.orders", long, long[1:]} {
		for n := 1; n <= 3; n++ {
			id := seam.InstanceID("static", topic, n)
			at := fmt.Sprintf("%s, the subscription %d", topic, n)
			if before, ok := seen[id]; ok {
				t.Errorf("%s is the id of %s and of %s", id, before, at)
			}
			seen[id] = at
			cfg := sarama.NewConfig()
			cfg.Consumer.Group.InstanceId = id
			if err := cfg.Validate(); err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
	}
}
