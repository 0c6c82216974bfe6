package ackpolicy_test

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
)

// static makes the member a static one, which the broker keeps for longer than a restart takes.
func static(id string, session time.Duration) change {
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

func (h *handled) by(handler string) handle {
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
func serve(t *testing.T, cfg ackpolicy.SubscriberConfig, done *handled, topics ...string) *service {
	t.Helper()
	s := newService(t)
	s.router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	sub := newSubscriber(t, cfg, s.log)
	for _, topic := range topics {
		s.router.AddConsumerHandler(topic, topic, sub, s.recorded(done.by(topic)))
	}
	s.start(t)
	return s
}

// Two handlers of one static Subscriber, started again and again in the random order of Watermill's Router: each gets
// the records of its own topic, and all of them.
func TestStaticHandlersKeepTheirTopics(t *testing.T) {
	t.Parallel()
	const starts, each = 20, 5
	group := brokertest.Group(t)
	a, b := newTopic(t, 1), newTopic(t, 1)
	done := &handled{}
	for i := range starts {
		produce(t, a, 0, numbered(each)...)
		produce(t, b, 0, numbered(each)...)
		s := serve(t, config(group, static("static", patience)), done, a, b)
		for _, topic := range []string{a, b} {
			waitCommitted(t, group, topic, 0, int64((i+1)*each))
		}
		s.stop()
	}
	done.wantOnly(t, map[string]int{a: starts * each, b: starts * each})
}

// Two Subscribers of one process with one static id, and one that reads a topic twice: none fences another.
func TestStaticSubscribersShareAnID(t *testing.T) {
	t.Parallel()
	const each = 5
	group := brokertest.Group(t)
	a, b := newTopic(t, 2), newTopic(t, 1)
	done := &handled{}
	first := serve(t, config(group, static("static", patience)), done, a)
	second := serve(t, config(group, static("static", patience)), done, b)
	third := serve(t, config(group, static("static", patience)), done, a)
	eventually(t, "a group of three", func() bool {
		n, state, err := brokertest.Members(shared.Addrs(), group)
		return err == nil && n == 3 && state == "Stable"
	})
	for i := range int64(3) {
		for _, at := range []struct {
			topic     string
			partition int32
		}{{a, 0}, {a, 1}, {b, 0}} {
			produce(t, at.topic, at.partition, numbered(each)...)
			waitCommitted(t, group, at.topic, at.partition, (i+1)*each)
		}
	}
	for _, s := range []*service{first, second, third} {
		s.stop()
		if lines := with(s.log.at("error"), "fenced"); len(lines) > 0 {
			t.Errorf("fenced:\n%s", lines)
		}
	}
	done.wantOnly(t, map[string]int{a: 6 * each, b: 3 * each})
}

// A static Subscriber that comes back with another topic gets the records of that one, and leaves those of the old one.
func TestStaticMemberChangesItsTopic(t *testing.T) {
	t.Parallel()
	group := brokertest.Group(t)
	before, after := newTopic(t, 1, numbered(3)...), newTopic(t, 1, numbered(5)...)
	done := &handled{}
	s := serve(t, config(group, static("static", 6*time.Second)), done, before)
	waitCommitted(t, group, before, 0, 3)
	s.stop()
	produce(t, before, 0, numbered(4)...)
	s = serve(t, config(group, static("static", 6*time.Second)), done, after)
	waitCommitted(t, group, after, 0, 5)
	s.stop()
	wantCommitted(t, group, before, 0, 3)
	done.wantOnly(t, map[string]int{before: 3, after: 5})
}

// foreignMember is a member of the group that is not ours. It tells, by a closed channel, when its membership begins and ends.
type foreignMember struct {
	joined, left chan struct{}
	stop         func()
}

func (m *foreignMember) Setup(sarama.ConsumerGroupSession) error   { close(m.joined); return nil }
func (m *foreignMember) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (m *foreignMember) ConsumeClaim(_ sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for range claim.Messages() { //nolint:revive // nothing is to be done with them
	}
	return nil
}

// joinForeign joins a group as a stock client with a static id, and is a member for one session at most.
func joinForeign(t *testing.T, group, id, topic string, changes ...change) *foreignMember {
	t.Helper()
	cfg := config(group, append(changes, static(id, patience))...).Kafka.OverwriteSaramaConfig
	cfg.Consumer.Return.Errors = false
	g, err := sarama.NewConsumerGroup(shared.Addrs(), group, cfg)
	check(t, err)
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
	await(t, "the membership of "+id, m.joined)
	return m
}

// A broker that hands a static member the partitions which its id had before, of a topic that it does not
// subscribe to: none of their records reach the handler, nothing is committed for them, it is told, and the member gets its own.
func TestStaticMemberGetsAnotherTopicsPartitions(t *testing.T) {
	t.Parallel()
	for protocol, rebalance := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			group := brokertest.Group(t)
			other, topic := newTopic(t, 1, numbered(4)...), newTopic(t, 1, numbered(3)...)
			check(t, brokertest.ResetOffset(shared.Addrs(), group, other, 0, 1))
			id := "static-" + topic // what our Subscriber makes of its id
			joinForeign(t, group, id, other, rebalance).stop()
			done := &handled{}
			s := serve(t, config(group, rebalance, static("static", patience)), done, topic)
			waitCommitted(t, group, topic, 0, 3)
			s.stop()
			wantCommitted(t, group, other, 0, 1)
			done.wantOnly(t, map[string]int{topic: 3})
			told := with(s.log.at("error"), "another topic", "topic="+other, "kafka_partition=0", "group_instance_id="+id)
			if shared.Real() && len(told) == 0 { // kfake asks for the subscription, and rebalances
				t.Error("nobody was told")
			}
			if len(told) > 1 {
				t.Errorf("told %d times", len(told))
			}
		})
	}
}

// A second process takes over the static id: the subscription of the first ends, its Router with it, and it says so once. It does
// not fence the other one.
func TestStaticIDTakenOver(t *testing.T) {
	t.Parallel()
	for protocol, rebalance := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
			done := &handled{}
			s := serve(t, config(group, rebalance, static("static", patience)), done, topic)
			waitCommitted(t, group, topic, 0, 2)
			other := joinForeign(t, group, "static-"+topic, topic, rebalance)
			await(t, "the end of the Router", s.ended)
			told := with(s.log.at("error"), "static member id", "group_instance_id=static-"+topic)
			if len(told) != 1 {
				t.Errorf("told %d times: %v", len(told), told)
			}
			if more := slices.DeleteFunc(s.log.at("error"), func(l string) bool {
				return slices.Contains(told, l) || len(with([]string{l}, "All handlers stopped")) > 0
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
}

// Partitions that were added while a static member was away, or after it was back, are read: nobody else looks for them, for the broker
// gives it its old assignment without making it the leader.
func TestStaticMemberFindsAddedPartitions(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]bool{"away": true, "back": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
			done := &handled{}
			cfg := config(group, static("static", patience))
			cfg.Kafka.OverwriteSaramaConfig.Metadata.RefreshFrequency = 200 * time.Millisecond
			s := serve(t, cfg, done, topic)
			waitCommitted(t, group, topic, 0, 1)
			s.stop()
			add := func() {
				admin(t, shared, func(a sarama.ClusterAdmin) error { return a.CreatePartitions(topic, 3, nil, false) })
				for p := range int32(3) {
					produce(t, topic, p, numbered(2)...)
				}
			}
			if away {
				add()
			}
			s = serve(t, cfg, done, topic)
			eventually(t, "its return", func() bool { return len(with(s.log.at("info"), "Joined the consumer group")) > 0 })
			if !away {
				add()
			}
			for p := range int32(3) {
				waitCommitted(t, group, topic, p, []int64{3, 2, 2}[p])
			}
			s.stop()
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
			id := ackpolicy.InstanceID("static", topic, n)
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
