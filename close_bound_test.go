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

// snare is application code that does not return before the test lets it.
type snare struct {
	met  chan struct{} // closed once it is called
	free chan struct{}
	once sync.Once
}

func newSnare() *snare { return &snare{met: make(chan struct{}), free: make(chan struct{})} }

func (s *snare) hang() {
	s.once.Do(func() { close(s.met) })
	<-s.free
}

// hangingLetters, hangingPublisher and hangingUnmarshaler care for no context, as Publish has none.
type (
	hangingLetters     struct{ *snare }
	hangingPublisher   struct{ *snare }
	hangingUnmarshaler struct {
		badValues
		*snare
	}
)

func (s hangingLetters) Send(context.Context, *sarama.ConsumerMessage, ackpolicy.Letter) error {
	s.hang()
	return nil
}

func (s hangingPublisher) Publish(string, ...*message.Message) error {
	s.hang()
	return nil
}

func (s hangingPublisher) Close() error { return nil }

type hangingInterceptor struct{ *snare }

func (s hangingInterceptor) OnConsume(r *sarama.ConsumerMessage) {
	if r.Offset == 1 {
		s.hang()
	}
}

func (u hangingUnmarshaler) Unmarshal(r *sarama.ConsumerMessage) (*message.Message, error) {
	if r.Offset == 1 {
		u.hang()
	}
	return u.badValues.Unmarshal(r)
}

// Whatever application code does not return, Close ends within DrainTimeout + 5 s: what was settled before is committed,
// the group is left, the channel closed, and an error line names what still runs.
func TestCloseLeavesWhatHangs(t *testing.T) {
	t.Parallel()
	type application struct {
		set    func(s *snare, c *ackpolicy.SubscriberConfig)
		handle func(s *snare, d *ackpolicy.Delivery) error // for record 1
		told   []string                                    // in an error line
		stored int64                                       // 0: 1, since record 1 is what hangs
	}
	applications := map[string]application{
		"DeadLetter": {
			set:    func(s *snare, c *ackpolicy.SubscriberConfig) { c.DeadLetter = hangingLetters{s} },
			handle: func(*snare, *ackpolicy.Delivery) error { return ackpolicy.ErrReject },
			told:   []string{"DeadLetter.Send", "kafka_partition_offset=1"},
		},
		"DeadLetterPublisher": {
			set: func(s *snare, c *ackpolicy.SubscriberConfig) {
				c.DeadLetter = ackpolicy.DeadLetterPublisher{Publisher: hangingPublisher{s}}
			},
			handle: func(*snare, *ackpolicy.Delivery) error { return ackpolicy.ErrReject },
			told:   []string{"DeadLetter.Send", "kafka_partition_offset=1"},
		},
		"DeadLetterTopic.Headers": {
			set: func(s *snare, c *ackpolicy.SubscriberConfig) {
				c.DeadLetter = ackpolicy.DeadLetterTopic{
					Create:  &sarama.TopicDetail{},
					Headers: func(ackpolicy.Letter) []sarama.RecordHeader { s.hang(); return nil },
				}
			},
			handle: func(*snare, *ackpolicy.Delivery) error { return ackpolicy.ErrReject },
			told:   []string{"DeadLetter.Send", "kafka_partition_offset=1"},
		},
		"Unmarshaler": {
			set:  func(s *snare, c *ackpolicy.SubscriberConfig) { c.Kafka.Unmarshaler = hangingUnmarshaler{snare: s} },
			told: []string{"Unmarshaler", "kafka_partition_offset=1"},
		},
		"Backoff": {
			set: func(s *snare, c *ackpolicy.SubscriberConfig) {
				c.Backoff = func(int, error) time.Duration { s.hang(); return 0 }
			},
			handle: func(*snare, *ackpolicy.Delivery) error { return errBoom },
			told:   []string{"Backoff", "kafka_partition_offset=1"},
		},
		"Interceptor": {
			set: func(s *snare, c *ackpolicy.SubscriberConfig) {
				c.Kafka.OverwriteSaramaConfig.Consumer.Interceptors = []sarama.ConsumerInterceptor{hangingInterceptor{s}}
			},
			told: []string{"Consumer.Interceptor", "kafka_partition_offset=1"},
		},
	}
	for name, set := range map[string]func(s *snare, h *ackpolicy.Hooks){
		"Assigned":  func(s *snare, h *ackpolicy.Hooks) { h.Assigned = func(ackpolicy.AssignedEvent) { s.hang() } },
		"Settled":   func(s *snare, h *ackpolicy.Hooks) { h.Settled = func(ackpolicy.SettledEvent) { s.hang() } },
		"Committed": func(s *snare, h *ackpolicy.Hooks) { h.Committed = func(ackpolicy.CommittedEvent) { s.hang() } },
	} {
		applications["Hooks."+name] = application{
			set:    func(s *snare, c *ackpolicy.SubscriberConfig) { set(s, &c.Hooks) },
			told:   []string{"Hooks." + name},
			stored: 3,
		}
	}
	for name, test := range applications {
		for protocol, change := range protocols() {
			t.Run(name+", "+protocol, func(t *testing.T) {
				t.Parallel()
				const drain = 300 * time.Millisecond
				s := newSnare()
				cfg := config(brokertest.Group(t), drainTimeout(drain), change)
				group, topic := cfg.Kafka.ConsumerGroup, newTopic(t, 1, numbered(3)...)
				test.set(s, &cfg)
				service := consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
					if d.Offset() == 1 && test.handle != nil {
						return test.handle(s, d)
					}
					return nil
				}, ackpolicy.NackOnError.Middleware)
				defer close(s.free)
				await(t, "the call that hangs", s.met)
				if test.stored > 0 {
					service.journal.wait(t, int(test.stored)) // hooks hold nothing up
				}
				wantClosed(t, service.stop, drain)
				wantCommitted(t, group, topic, 0, max(test.stored, 1))
				wantMembers(t, group, 0)
				if len(with(service.log.at("error"), append(test.told, topic)...)) == 0 {
					t.Errorf("no error line names %v: %v", test.told, service.log.at("error"))
				}
			})
		}
	}
}

func wantMembers(t *testing.T, group string, want int) {
	t.Helper()
	n, state, err := brokertest.Members(shared.Addrs(), group)
	check(t, err)
	if n != want {
		t.Errorf("the group has %d members, want %d: %s", n, want, state)
	}
}

// A Router whose handler never returns is told so after its CloseTimeout; of ours nothing runs any more by then.
func TestCloseWithAHandlerThatNeverReturns(t *testing.T) {
	t.Parallel()
	for protocol, change := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			const drain = 300 * time.Millisecond
			trap := newSnare()
			cfg := config(brokertest.Group(t), drainTimeout(drain), change)
			group, topic := cfg.Kafka.ConsumerGroup, newTopic(t, 1, numbered(3)...)
			s := newService(t)
			router, err := message.NewRouter(message.RouterConfig{CloseTimeout: drain + 5*time.Second}, s.log)
			check(t, err)
			s.router = router
			router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			sub := newSubscriber(t, cfg, s.log)
			router.AddConsumerHandler("handler", topic, sub, s.recorded(func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == 1 {
					trap.hang()
				}
				return nil
			}))
			s.start(t)
			defer close(trap.free)
			await(t, "the handler", trap.met)
			closed := make(chan error, 1)
			go func() { closed <- sub.Close() }()
			wantClosed(t, func() {
				if router.Close() == nil {
					t.Error("the Router says that its handler returned")
				}
			}, drain)
			check(t, await(t, "the subscriber's Close", closed))
			wantCommitted(t, group, topic, 0, 1)
			wantMembers(t, group, 0)
			if len(with(s.log.at("error"), "handlers_running=1", "first_left_offset=1")) == 0 {
				t.Errorf("the handler is not named: %v", s.log.at("error"))
			}
		})
	}
}

// On a revocation the same holds: the other member gets its partition, and what was settled is not delivered again.
func TestRevocationLeavesWhatHangs(t *testing.T) {
	t.Parallel()
	for protocol, change := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			trap := newSnare()
			group, topic := brokertest.Group(t), filledTopic(t, 2, 3)
			cfg := config(group, drainTimeout(300*time.Millisecond), change)
			cfg.DeadLetter = hangingLetters{trap}
			reject := func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == 1 {
					return ackpolicy.ErrReject
				}
				return nil
			}
			first := consume(t, cfg, topic, reject, ackpolicy.NackOnError.Middleware)
			defer close(trap.free)
			first.journal.wait(t, 6)
			other := config(group, change)
			began := time.Now()
			second := consume(t, other, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
			second.journal.wait(t, 1)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("the other member had to wait %v", took)
			}
			if o := second.journal.all()[0].Offset(); o != 1 {
				t.Errorf("the other member begins at %d, want 1", o)
			}
			second.stop()
			wantClosed(t, first.stop, 300*time.Millisecond)
		})
	}
}

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
			eventually(t, "the second session", func() bool { // in a cooperative one the session goes on
				n, state, err := brokertest.Members(broker.Addrs(), group)
				return err == nil && n == 2 && state == "Stable"
			})
			before := joins.Load()
			third := newSubscriber(t, member("third"), log)
			_, err = third.Subscribe(context.Background(), topic)
			check(t, err)
			eventually(t, "another JoinGroup", func() bool { return joins.Load() > before })
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
