package ackpolicy_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// networks are those between a client and its brokers, by address.
type networks map[string]*brokertest.Network

func (n networks) Dial(network, addr string) (net.Conn, error) { return n[addr].Dial(network, addr) }

// silentLeader is a partition whose leader a test can silence, while the group's coordinator goes on.
type silentLeader struct {
	broker       *brokertest.Broker
	topic, group string
	leader       *brokertest.Network
	reached      change // through those networks
	direct       change
}

func newSilentLeader(t *testing.T, records ...brokertest.Record) *silentLeader {
	t.Helper()
	l := &silentLeader{broker: brokertest.NewFake(t, kfake.NumBrokers(2))}
	l.topic, l.direct = fakeTopic(t, l.broker, records...)
	client, err := sarama.NewClient(l.broker.Addrs(), nil)
	check(t, err)
	defer client.Close()
	leader, err := client.Leader(l.topic, 0)
	check(t, err)
	for coordinator := leader; coordinator.ID() == leader.ID(); {
		l.group = brokertest.Group(t)
		coordinator, err = client.Coordinator(l.group)
		check(t, err)
	}
	all := networks{}
	for _, addr := range l.broker.Addrs() {
		all[addr] = &brokertest.Network{}
	}
	l.leader = all[leader.Addr()]
	l.reached = func(c *ackpolicy.SubscriberConfig) {
		l.direct(c)
		c.Kafka.OverwriteSaramaConfig.Net.Proxy.Enable = true
		c.Kafka.OverwriteSaramaConfig.Net.Proxy.Dialer = all
	}
	return l
}

// silence silences the leader, and waits until it has been asked once more.
func (l *silentLeader) silence(t *testing.T) {
	t.Helper()
	before := l.leader.Dials()
	l.leader.Delay(time.Hour)
	eventually(t, "another question", func() bool { return l.leader.Dials() > before })
}

// What a silent leader is being asked, in a fetch, by the watchdog, or for a record that was pushed out of memory, holds
// neither Close nor the leave; nor, on a revocation, the next owner.
func TestCloseWithASilentLeader(t *testing.T) {
	t.Parallel()
	const drain = 300 * time.Millisecond
	for how, end := range map[string]func(t *testing.T, l *silentLeader, s *service){
		"closing": func(t *testing.T, l *silentLeader, s *service) {
			wantClosed(t, s.stop, drain)
			n, state, err := brokertest.Members(l.broker.Addrs(), l.group)
			check(t, err)
			if n != 0 {
				t.Errorf("%d members are left in the group: %s", n, state)
			}
			if lines := with(s.log.at("error"), "connections cut"); len(lines) > 0 {
				t.Errorf("it took to the very end: %v", lines)
			}
		},
		"revoked": func(t *testing.T, l *silentLeader, s *service) {
			other := consume(t, config(l.group, l.direct), l.topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.Manual.Middleware)
			eventually(t, "the drain", func() bool { return len(with(s.log.at("debug"), "Partition released")) > 0 })
			began := time.Now()
			// What it asks then, the silent leader perhaps, is another matter: to join again takes metadata.
			eventually(t, "the end of the session", func() bool {
				return len(with(s.log.at("info"), "Waiting for the consumer group")) > 0 || len(with(s.log.at("info"), "Joined the consumer group")) > 1
			})
			if took := time.Since(began); took > 8*time.Second { // the line comes after 3 s
				t.Errorf("the session took %v to end", took)
			}
			other.stop()
			wantClosed(t, s.stop, drain)
		},
	} {
		t.Run("watchdog, "+how, func(t *testing.T) {
			t.Parallel()
			l := newSilentLeader(t, numbered(3)...)
			s := newService(t)
			s.router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			sub := newSubscriber(t, config(l.group, l.reached, drainTimeout(drain)), s.log)
			sub.LookEvery(500 * time.Millisecond)
			s.router.AddConsumerHandler("handler", l.topic, sub, s.recorded(func(*message.Message, *ackpolicy.Delivery) error { return nil }))
			s.start(t)
			s.journal.wait(t, 3)
			l.silence(t)
			end(t, l, s)
			s.journal.want(t, "0#1", "1#1", "2#1")
		})
		t.Run("re-read, "+how, func(t *testing.T) {
			t.Parallel()
			const records, keys = 400, 4
			l := newSilentLeader(t, bulky(records, keys)...)
			cfg := config(l.group, l.reached, drainTimeout(drain), ordering(ackpolicy.OrderByKey, 16))
			cfg.MaxBufferedBytes = 1 << 20
			s := consume(t, cfg, l.topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				return ackpolicy.NackAfter(4 * time.Second) // and so those behind it wait, and are pushed out
			}, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, keys)
			l.silence(t)
			end(t, l, s)
		})
	}
}

// A topic that was deleted takes no commits any more: that is no reason to try until the time is up.
func TestCloseAfterTheTopicWasDeleted(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := fakeTopic(t, broker, numbered(3)...)
	cfg := config(brokertest.Group(t), at, drainTimeout(300*time.Millisecond))
	cfg.CommitInterval = time.Hour // the last commit is all there is
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, 3)
	fault := broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.UnknownTopicOrPartition, Count: -1})
	began := time.Now()
	wantClosed(t, s.stop, 300*time.Millisecond)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Close took %v, and %d commits", took, fault.Hits())
	}
	if n := fault.Hits(); n == 0 || n > 6 {
		t.Errorf("%d commits", n)
	}
	if len(with(s.log.at("error"), "commit", topic)) == 0 {
		t.Errorf("no error line: %v", s.log.at("error"))
	}
}

// The same with a topic that is deleted under its group, on whatever broker; and on a revocation.
func TestCloseWithoutItsTopic(t *testing.T) {
	t.Parallel()
	for protocol, change := range protocols() {
		for _, how := range []string{"closing", "revoked"} {
			t.Run(protocol+", "+how, func(t *testing.T) {
				t.Parallel()
				const drain = 300 * time.Millisecond
				topic := newTopic(t, 1, numbered(3)...)
				cfg := config(brokertest.Group(t), drainTimeout(drain), change)
				cfg.CommitInterval = time.Hour
				nothing := func(*message.Message, *ackpolicy.Delivery) error { return nil }
				s := consume(t, cfg, topic, nothing, ackpolicy.NackOnError.Middleware)
				s.journal.wait(t, 3)
				admin(t, shared, func(a sarama.ClusterAdmin) error { return a.DeleteTopic(topic) })
				began := time.Now()
				if how == "revoked" {
					other := consume(t, config(cfg.Kafka.ConsumerGroup, change), newTopic(t, 1, numbered(1)...), nothing, ackpolicy.NackOnError.Middleware)
					other.journal.wait(t, 1) // of another topic, but the same group
					other.stop()
				}
				wantClosed(t, s.stop, drain)
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("took %v", took)
				}
				wantMembers(t, cfg.Kafka.ConsumerGroup, 0)
			})
		}
	}
}

// Without a group Close keeps the same bound.
func TestCloseWithoutAGroupLeavesWhatHangs(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(s *snare, c *ackpolicy.SubscriberConfig){
		"DeadLetter":  func(s *snare, c *ackpolicy.SubscriberConfig) { c.DeadLetter = hangingLetters{s} },
		"Unmarshaler": func(s *snare, c *ackpolicy.SubscriberConfig) { c.Kafka.Unmarshaler = hangingUnmarshaler{snare: s} },
		"handler":     nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			trap := newSnare()
			cfg := config("", drainTimeout(300*time.Millisecond))
			log := newLog(t)
			if set != nil {
				set(trap, &cfg)
			}
			sub := newSubscriber(t, cfg, log)
			out, err := sub.Subscribe(context.Background(), newTopic(t, 1, numbered(3)...))
			check(t, err)
			read := make(chan struct{})
			go func() {
				defer close(read)
				for msg := range out {
					d, _ := ackpolicy.FromMessage(msg)
					switch {
					case d.Offset() != 1:
						msg.Ack()
					case set == nil:
						trap.hang()
					default:
						d.Reject(errPoison)
						msg.Ack()
					}
				}
			}()
			defer func() { <-read }()
			defer close(trap.free)
			await(t, "the call that hangs", trap.met)
			wantClosed(t, func() { check(t, sub.Close()) }, 300*time.Millisecond)
			if len(with(log.at("error"), "Partition released")) == 0 {
				t.Errorf("nobody was told: %v", log.at("error"))
			}
		})
	}
}

// hangingTracer keeps a claim from its end.
type hangingTracer struct {
	kafka.SaramaTracer
	*snare
}

func (h hangingTracer) WrapConsumerGroupHandler(inner sarama.ConsumerGroupHandler) sarama.ConsumerGroupHandler {
	return hangingHandler{inner, h.snare}
}

type hangingHandler struct {
	sarama.ConsumerGroupHandler
	*snare
}

func (h hangingHandler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	defer h.hang()
	return h.ConsumerGroupHandler.ConsumeClaim(session, claim)
}

// Code that sarama calls may keep it from ending: Close says so, in time, and the channel closes.
func TestCloseIfSaramaDoesNotEnd(t *testing.T) {
	t.Parallel()
	trap := newSnare()
	cfg := config(brokertest.Group(t), drainTimeout(300*time.Millisecond))
	cfg.Kafka.Tracer = hangingTracer{kafka.NewOTELSaramaTracer(), trap}
	topic, log := newTopic(t, 1, numbered(2)...), newLog(t)
	sub := newSubscriber(t, cfg, log)
	out, err := sub.Subscribe(context.Background(), topic)
	check(t, err)
	defer func() { check(t, sub.Close()) }() // all has ended by then
	defer close(trap.free)
	for range 2 {
		await(t, "a message", out).Ack()
	}
	waitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 2)
	wantClosed(t, func() {
		if err := sub.Close(); err == nil {
			t.Log("the subscription counts as ended: its channel is closed")
		}
	}, 300*time.Millisecond)
	if _, open := <-out; open {
		t.Error("a message")
	}
	if len(with(log.at("error"), "Subscription closed", "Tracer", topic)) == 0 {
		t.Errorf("nobody was told: %v", log.at("error"))
	}
}

// A handler that ends with its context, which the drain ends, does not keep a Router until its CloseTimeout.
func TestRouterClosesInTime(t *testing.T) {
	t.Parallel()
	const drain = 300 * time.Millisecond
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	s := consume(t, config(group, drainTimeout(drain)), topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
		<-msg.Context().Done()
		return context.Cause(msg.Context())
	}, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, 1)
	wantClosed(t, func() {
		check(t, s.router.Close())
		<-s.ended
	}, drain)
	s.journal.want(t, "0#1")
	wantCommitted(t, group, topic, 0, 0)
}

// A static member inside of JoinGroup goes at once, too; its id stays in the group, as it is to.
func TestCloseInsideJoinGroupAsAStaticMember(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
	slow := newSnare()
	cfg := config(group, drainTimeout(patience))
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.Timeout = 2 * patience
	first := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error {
		slow.hang()
		return nil
	}, ackpolicy.NackOnError.Middleware)
	defer close(slow.free)
	d := first.journal.wait(t, 1)
	static := config(group, drainTimeout(5*time.Second))
	static.Kafka.OverwriteSaramaConfig.Consumer.Group.InstanceId = "static"
	sub := newSubscriber(t, static, first.log)
	_, err := sub.Subscribe(context.Background(), topic)
	check(t, err)
	await(t, "the first member's drain", d.Draining())
	began := time.Now()
	check(t, sub.Close())
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Close took %v", took)
	}
}
