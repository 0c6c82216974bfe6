package lifecycle_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
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
		testkit.BadValues
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
	return u.BadValues.Unmarshal(r)
}

// Whatever application code does not return, Close ends within DrainTimeout + 5 s: what was settled before is committed,
// the group is left, the channel closed, and an error line names what still runs.
func TestCloseLeavesWhatHangs(t *testing.T) {
	t.Parallel()
	type application struct {
		set      func(s *snare, c *ackpolicy.SubscriberConfig)
		handle   func(s *snare, d *ackpolicy.Delivery) error // for record 1
		reported []string                                    // in an error line
		stored   int64                                       // 0: 1, since record 1 is what hangs
	}
	applications := map[string]application{
		"DeadLetter": {
			set:      func(s *snare, c *ackpolicy.SubscriberConfig) { c.DeadLetter = hangingLetters{s} },
			handle:   func(*snare, *ackpolicy.Delivery) error { return ackpolicy.ErrReject },
			reported: []string{"DeadLetter.Send", "kafka_partition_offset=1"},
		},
		"DeadLetterPublisher": {
			set: func(s *snare, c *ackpolicy.SubscriberConfig) {
				c.DeadLetter = ackpolicy.DeadLetterPublisher{Publisher: hangingPublisher{s}}
			},
			handle:   func(*snare, *ackpolicy.Delivery) error { return ackpolicy.ErrReject },
			reported: []string{"DeadLetter.Send", "kafka_partition_offset=1"},
		},
		"DeadLetterTopic.Headers": {
			set: func(s *snare, c *ackpolicy.SubscriberConfig) {
				c.DeadLetter = ackpolicy.DeadLetterTopic{
					Create:  &sarama.TopicDetail{},
					Headers: func(ackpolicy.Letter) []sarama.RecordHeader { s.hang(); return nil },
				}
			},
			handle:   func(*snare, *ackpolicy.Delivery) error { return ackpolicy.ErrReject },
			reported: []string{"DeadLetter.Send", "kafka_partition_offset=1"},
		},
		"Unmarshaler": {
			set:      func(s *snare, c *ackpolicy.SubscriberConfig) { c.Kafka.Unmarshaler = hangingUnmarshaler{snare: s} },
			reported: []string{"Unmarshaler", "kafka_partition_offset=1"},
		},
		"Backoff": {
			set: func(s *snare, c *ackpolicy.SubscriberConfig) {
				c.Backoff = func(int, error) time.Duration { s.hang(); return 0 }
			},
			handle:   func(*snare, *ackpolicy.Delivery) error { return testkit.ErrBoom },
			reported: []string{"Backoff", "kafka_partition_offset=1"},
		},
		"Interceptor": {
			set: func(s *snare, c *ackpolicy.SubscriberConfig) {
				c.Kafka.OverwriteSaramaConfig.Consumer.Interceptors = []sarama.ConsumerInterceptor{hangingInterceptor{s}}
			},
			reported: []string{"Consumer.Interceptor", "kafka_partition_offset=1"},
		},
	}
	for name, set := range map[string]func(s *snare, h *ackpolicy.Hooks){
		"Assigned":  func(s *snare, h *ackpolicy.Hooks) { h.Assigned = func(ackpolicy.AssignedEvent) { s.hang() } },
		"Settled":   func(s *snare, h *ackpolicy.Hooks) { h.Settled = func(ackpolicy.SettledEvent) { s.hang() } },
		"Committed": func(s *snare, h *ackpolicy.Hooks) { h.Committed = func(ackpolicy.CommittedEvent) { s.hang() } },
	} {
		applications["Hooks."+name] = application{
			set:      func(s *snare, c *ackpolicy.SubscriberConfig) { set(s, &c.Hooks) },
			reported: []string{"Hooks." + name},
			stored:   3,
		}
	}
	for name, test := range applications {
		for protocol, change := range testkit.Protocols() {
			t.Run(name+", "+protocol, func(t *testing.T) {
				t.Parallel()
				const drain = 300 * time.Millisecond
				s := newSnare()
				cfg := testkit.Config(brokertest.Group(t), testkit.DrainTimeout(drain), change)
				group, topic := cfg.Kafka.ConsumerGroup, testkit.NewTopic(t, 1, testkit.Numbered(3)...)
				test.set(s, &cfg)
				service := testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
					if d.Offset() == 1 && test.handle != nil {
						return test.handle(s, d)
					}
					return nil
				}, ackpolicy.NackOnError.Middleware)
				defer close(s.free)
				testkit.Await(t, "the call that hangs", s.met)
				if test.stored > 0 {
					service.Wait(t, int(test.stored)) // hooks delay nothing
				}
				wantClosed(t, service.Stop, drain)
				testkit.WantCommitted(t, group, topic, 0, max(test.stored, 1))
				wantMembers(t, group, 0)
				if len(testkit.Containing(service.Log.At("error"), append(test.reported, topic)...)) == 0 {
					t.Errorf("no error line names %v: %v", test.reported, service.Log.At("error"))
				}
			})
		}
	}
}

func wantMembers(t *testing.T, group string, want int) {
	t.Helper()
	n, state, err := brokertest.Members(testkit.Shared.Addrs(), group)
	testkit.Check(t, err)
	if n != want {
		t.Errorf("the group has %d members, want %d: %s", n, want, state)
	}
}

// A Router whose handler never returns reports that after its CloseTimeout; by then nothing of our Subscriber runs.
func TestCloseWithAHandlerThatNeverReturns(t *testing.T) {
	t.Parallel()
	testkit.EachProtocol(t, func(t *testing.T, change testkit.Option) {
		const drain = 300 * time.Millisecond
		trap := newSnare()
		cfg := testkit.Config(brokertest.Group(t), testkit.DrainTimeout(drain), change)
		group, topic := cfg.Kafka.ConsumerGroup, testkit.NewTopic(t, 1, testkit.Numbered(3)...)
		s := testkit.NewService(t)
		router, err := message.NewRouter(message.RouterConfig{CloseTimeout: drain + 5*time.Second}, s.Log)
		testkit.Check(t, err)
		s.Router = router
		router.AddMiddleware(ackpolicy.NackOnError.Middleware)
		sub := testkit.NewSubscriber(t, cfg, s.Log)
		router.AddConsumerHandler("handler", topic, sub, s.Recorded(func(_ *message.Message, d *ackpolicy.Delivery) error {
			if d.Offset() == 1 {
				trap.hang()
			}
			return nil
		}))
		s.Start(t)
		defer close(trap.free)
		testkit.Await(t, "the handler", trap.met)
		closed := make(chan error, 1)
		go func() { closed <- sub.Close() }()
		wantClosed(t, func() {
			if router.Close() == nil {
				t.Error("the Router says that its handler returned")
			}
		}, drain)
		testkit.Check(t, testkit.Await(t, "the subscriber's Close", closed))
		testkit.WantCommitted(t, group, topic, 0, 1)
		wantMembers(t, group, 0)
		if len(testkit.Containing(s.Log.At("error"), "handlers_running=1", "first_left_offset=1")) == 0 {
			t.Errorf("the handler is not named: %v", s.Log.At("error"))
		}
	})
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
			cfg := testkit.Config("", testkit.DrainTimeout(300*time.Millisecond))
			log := testkit.NewLog(t)
			if set != nil {
				set(trap, &cfg)
			}
			sub := testkit.NewSubscriber(t, cfg, log)
			out, err := sub.Subscribe(context.Background(), testkit.NewTopic(t, 1, testkit.Numbered(3)...))
			testkit.Check(t, err)
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
						d.Reject(testkit.ErrPoison)
						msg.Ack()
					}
				}
			}()
			defer func() { <-read }()
			defer close(trap.free)
			testkit.Await(t, "the call that hangs", trap.met)
			wantClosed(t, func() { testkit.Check(t, sub.Close()) }, 300*time.Millisecond)
			if len(testkit.Containing(log.At("error"), "Partition released")) == 0 {
				t.Errorf("nothing was reported: %v", log.At("error"))
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
	cfg := testkit.Config(brokertest.Group(t), testkit.DrainTimeout(300*time.Millisecond))
	cfg.Kafka.Tracer = hangingTracer{kafka.NewOTELSaramaTracer(), trap}
	topic, log := testkit.NewTopic(t, 1, testkit.Numbered(2)...), testkit.NewLog(t)
	sub := testkit.NewSubscriber(t, cfg, log)
	out, err := sub.Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	defer func() { testkit.Check(t, sub.Close()) }() // all has ended by then
	defer close(trap.free)
	for range 2 {
		testkit.Await(t, "a message", out).Ack()
	}
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 2)
	wantClosed(t, func() {
		if err := sub.Close(); err == nil {
			t.Log("the subscription counts as ended: its channel is closed")
		}
	}, 300*time.Millisecond)
	if _, open := <-out; open {
		t.Error("a message")
	}
	if len(testkit.Containing(log.At("error"), "Subscription closed", "Tracer", topic)) == 0 {
		t.Errorf("nothing was reported: %v", log.At("error"))
	}
}
