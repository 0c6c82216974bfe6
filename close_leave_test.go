package ackpolicy_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// silent listens and says nothing.
func silent(t *testing.T) (addr string, accepted <-chan net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	conns := make(chan net.Conn, 100)
	var all []net.Conn
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all = append(all, c)
			conns <- c
		}
	}()
	t.Cleanup(func() {
		check(t, l.Close())
		<-ended
		for _, c := range all {
			_ = c.Close()
		}
	})
	return l.Addr().String(), conns
}

// Close interrupts a Subscribe whose dead letter topic is just being connected.
func TestCloseWhileTheLettersConnect(t *testing.T) {
	t.Parallel()
	addr, accepted := silent(t)
	cfg := config(brokertest.Group(t), drainTimeout(200*time.Millisecond))
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Brokers: []string{addr}, Create: &sarama.TopicDetail{}}
	sub := newSubscriber(t, cfg, newLog(t))
	topic := newTopic(t, 1)
	subscribed := make(chan error, 1)
	go func() {
		_, err := sub.Subscribe(context.Background(), topic)
		subscribed <- err
	}()
	await(t, "the connection", accepted)
	wantClosed(t, func() { check(t, sub.Close()) }, 200*time.Millisecond)
	if err := await(t, "Subscribe's end", subscribed); err == nil {
		t.Error("Subscribe succeeded")
	}
}

// So does the end of Subscribe's own context, and Close need not wait then.
func TestSubscribeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(c *ackpolicy.SubscriberConfig, addr string){
		"brokers": func(c *ackpolicy.SubscriberConfig, addr string) { c.Kafka.Brokers = []string{addr} },
		"letters": func(c *ackpolicy.SubscriberConfig, addr string) {
			c.DeadLetter = ackpolicy.DeadLetterTopic{Brokers: []string{addr}, Create: &sarama.TopicDetail{}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr, accepted := silent(t)
			cfg := config(brokertest.Group(t))
			set(&cfg, addr)
			sub := newSubscriber(t, cfg, newLog(t))
			topic := newTopic(t, 1)
			ctx, cancel := context.WithCancel(context.Background())
			subscribed := make(chan error, 1)
			go func() {
				_, err := sub.Subscribe(ctx, topic)
				subscribed <- err
			}()
			await(t, "the connection", accepted)
			began := time.Now()
			cancel()
			if err := await(t, "Subscribe's end", subscribed); err == nil {
				t.Error("Subscribe succeeded")
			}
			check(t, sub.Close())
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// A member that is waiting inside of JoinGroup for the others leaves at once, and no ghost stays in the group.
func TestCloseInsideJoinGroup(t *testing.T) {
	t.Parallel()
	for protocol, change := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			if protocol == "cooperative" && !shared.Real() {
				t.Skip("kfake waits for a member that has left out of SyncGroup")
			}
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
			slow := newSnare() // holds the rebalance
			cfg := config(group, change, drainTimeout(patience))
			cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.Timeout = 2 * patience
			first := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error {
				slow.hang()
				return nil
			}, ackpolicy.NackOnError.Middleware)
			free := sync.OnceFunc(func() { close(slow.free) })
			defer free()
			d := first.journal.wait(t, 1)
			sub := newSubscriber(t, config(group, change, drainTimeout(5*time.Second)), first.log)
			out, err := sub.Subscribe(context.Background(), topic)
			check(t, err)
			if protocol == "eager" {
				await(t, "the first member's drain", d.Draining()) // it was told of the other, which waits for it
			} else {
				eventually(t, "a second member", func() bool {
					n, _, err := brokertest.Members(shared.Addrs(), group)
					return err == nil && n == 2
				})
			}
			began := time.Now()
			check(t, sub.Close())
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("Close took %v", took)
			}
			if _, ok := <-out; ok {
				t.Error("a message")
			}
			eventually(t, "the end of the membership", func() bool {
				n, _, err := brokertest.Members(shared.Addrs(), group)
				return err == nil && n == 1
			})
			free()
			first.stop()
			wantMembers(t, group, 0)
		})
	}
}

// deaf is a member that takes part in a rebalance once, and never again.
type deaf struct{ *snare }

func (d deaf) Setup(sarama.ConsumerGroupSession) error   { d.hang(); return nil }
func (d deaf) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (d deaf) ConsumeClaim(session sarama.ConsumerGroupSession, _ sarama.ConsumerGroupClaim) error {
	<-session.Context().Done()
	return nil
}

// join makes it a member, until the test ends.
func (d deaf) join(t *testing.T, cfg ackpolicy.SubscriberConfig, topic string) {
	t.Helper()
	group, err := sarama.NewConsumerGroup(cfg.Kafka.Brokers, cfg.Kafka.ConsumerGroup, cfg.Kafka.OverwriteSaramaConfig)
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		_ = group.Consume(ctx, []string{topic}, d)
	}()
	t.Cleanup(func() {
		cancel()
		close(d.free)
		<-consumed
		_ = group.Close()
	})
	await(t, "its part in a rebalance", d.met)
}

// The same for a member that joins again: it had joined before, and the group then waits for one that does not answer.
func TestCloseWhileJoiningAgain(t *testing.T) {
	t.Parallel()
	for protocol := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t)
			topic, at := fakeTopicOf(t, broker, 3)
			group := brokertest.Group(t)
			member := func(name string) ackpolicy.SubscriberConfig {
				cfg := config(group, at, protocols()[protocol], drainTimeout(5*time.Second))
				cfg.Kafka.OverwriteSaramaConfig.ClientID = name
				cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.Timeout = 2 * patience
				cfg.Kafka.OverwriteSaramaConfig.Net.ReadTimeout = 3 * patience
				return cfg
			}
			var joins atomic.Int32
			broker.Kfake().ControlKey(int16(kmsg.JoinGroup), func(request kmsg.Request) (kmsg.Response, error, bool) {
				broker.Kfake().KeepControl()
				if strings.HasPrefix(request.(*kmsg.JoinGroupRequest).MemberID, "ours-") {
					joins.Add(1)
				}
				return nil, nil, false
			})
			log := newLog(t)
			ours := newSubscriber(t, member("ours"), log)
			_, err := ours.Subscribe(context.Background(), topic)
			check(t, err)
			eventually(t, "the first session", func() bool { return len(with(log.at("info"), "Joined the consumer group")) > 0 })
			deaf{newSnare()}.join(t, member("deaf"), topic)
			third := newSubscriber(t, member("third"), log)
			_, err = third.Subscribe(context.Background(), topic)
			check(t, err)
			// The first for itself, the second for the deaf member, and then for the third; or, in a cooperative
			// rebalance, since it has given a partition up.
			eventually(t, "the third JoinGroup", func() bool { return joins.Load() >= 3 })
			began := time.Now()
			check(t, ours.Close())
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("Close took %v", took)
			}
			eventually(t, "the end of the membership", func() bool {
				n, _, err := brokertest.Members(broker.Addrs(), group)
				return err == nil && n == 2
			})
			check(t, third.Close())
		})
	}
}

// Close called by many, with Subscribes under way: all of them return, nothing is left, and nothing can be subscribed after.
func TestCloseAmongSubscribes(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 2, numbered(2)...)
	for round := range 5 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			cfg := config(brokertest.Group(t), drainTimeout(200*time.Millisecond), toTopic)
			sub := newSubscriber(t, cfg, newLog(t))
			var all sync.WaitGroup
			for i := range 4 {
				all.Go(func() {
					out, err := sub.Subscribe(context.Background(), topic)
					if err != nil {
						return // closed
					}
					for msg := range out {
						msg.Ack()
					}
				})
				all.Go(func() {
					time.Sleep(time.Duration(round*i) * 10 * time.Millisecond)
					wantClosed(t, func() { check(t, sub.Close()) }, 200*time.Millisecond)
				})
			}
			all.Wait()
			if _, err := sub.Subscribe(context.Background(), topic); err == nil {
				t.Error("subscribed after Close")
			}
			check(t, sub.Close())
		})
	}
	unused := newSubscriber(t, config(brokertest.Group(t)), nil)
	check(t, unused.Close())
	if _, err := unused.Subscribe(context.Background(), topic); err == nil {
		t.Error("subscribed after a Close that came before any Subscribe")
	}
}

// Whoever does not read has nothing in hand: nobody waits for that.
func TestCloseWithNobodyReading(t *testing.T) {
	t.Parallel()
	for protocol, change := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, keyed("a", "b", "c", "d")...)
			log := newLog(t)
			sub := newSubscriber(t, config(group, change, ordering(ackpolicy.OrderByKey, 4)), log)
			out, err := sub.Subscribe(context.Background(), topic)
			check(t, err)
			await(t, "a message", out).Ack()
			waitCommitted(t, group, topic, 0, 1)
			began := time.Now()
			check(t, sub.Close())
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("Close took %v, and DrainTimeout is 10 s", took)
			}
			if errs := log.at("error"); len(errs) > 0 {
				t.Errorf("errors: %v", errs)
			}
		})
	}
}

// A message that was taken and is neither acked nor nacked is waited for, since it may be in work; the log says so, and names it.
func TestCloseNamesWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	sub := newSubscriber(t, config(brokertest.Group(t), drainTimeout(3*time.Second)), log)
	topic := newTopic(t, 1, numbered(3)...)
	out, err := sub.Subscribe(context.Background(), topic)
	check(t, err)
	await(t, "a message", out).Ack()
	await(t, "a message", out)
	wantClosed(t, func() { check(t, sub.Close()) }, 3*time.Second)
	lines := log.at("info", "error")
	waits := slices.IndexFunc(lines, func(l string) bool {
		return len(with([]string{l}, "neither acked nor nacked", "kafka_partition_offset=1", topic)) > 0
	})
	released := slices.IndexFunc(lines, func(l string) bool { return len(with([]string{l}, "Partition released", "first_left_offset=1")) > 0 })
	if waits < 0 || released < waits {
		t.Errorf("no line says what is waited for, before the partition is released: %v", lines)
	}
}
