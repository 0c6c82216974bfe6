package ackpolicy_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

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
