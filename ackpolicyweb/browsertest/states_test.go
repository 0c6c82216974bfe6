package browsertest

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/chromedp/chromedp"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyweb"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// consume runs a handler on a topic until the test's end.
func consume(t *testing.T, cfg ackpolicy.SubscriberConfig, topic string, policy message.HandlerMiddleware, h testkit.Handle) *ackpolicy.Subscriber {
	t.Helper()
	s := testkit.NewService(t)
	sub := testkit.NewSubscriber(t, cfg, s.Log)
	s.Router.AddMiddleware(policy)
	s.Router.AddConsumerHandler("charge", topic, sub, s.Recorded(h))
	s.Start(t)
	return sub
}

func page(sub *ackpolicy.Subscriber) ackpolicyweb.Options {
	return ackpolicyweb.Options{
		Subscribers: []ackpolicyweb.Subscriber{sub}, Refresh: 200 * time.Millisecond, ShowKeys: true,
		AllowActions: func(*http.Request) string { return "ada" },
	}
}

const quiet = "Nothing is held, blocked or failing."

// down is a dead letter destination that is away until it is fixed.
type down struct{ fixed <-chan struct{} }

func (d down) Send(context.Context, *sarama.ConsumerMessage, ackpolicy.Letter) error {
	select {
	case <-d.fixed:
		return nil
	default:
		return errors.New("dead letter topic: no leader")
	}
}

// Each kind of trouble of a real Subscriber shows on the open page, with the record that it is
// about, and goes when it is over.
func TestStates(t *testing.T) {
	errProvider := errors.New("payment provider: 503 Service Unavailable")
	first := func(do func(ctx context.Context, fixed <-chan struct{}) error) func(<-chan struct{}) testkit.Handle {
		return func(fixed <-chan struct{}) testkit.Handle {
			return func(m *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() != 1 {
					return nil
				}
				return do(m.Context(), fixed)
			}
		}
	}
	fail := first(func(_ context.Context, fixed <-chan struct{}) error {
		select {
		case <-fixed:
			return nil
		default:
			return errProvider
		}
	})
	hang := first(func(ctx context.Context, fixed <-chan struct{}) error { return testkit.Until(ctx, fixed) })
	slow := func(c *ackpolicy.SubscriberConfig) { c.HandlerSlow = time.Second }
	for name, c := range map[string]struct {
		options []testkit.Option
		policy  ackpolicy.Policy
		handle  func(fixed <-chan struct{}) testkit.Handle
		letters bool
		sees    []string // of %T, the topic
	}{
		"hung, by partition": {[]testkit.Option{slow}, ackpolicy.NackOnError, hang, false, []string{"Slow handler: %T/0@1", "3 records of the partition wait", "handler charge"}},
		"hung, by key":       {[]testkit.Option{slow, testkit.Ordering(ackpolicy.OrderByKey, 4)}, ackpolicy.NackOnError, hang, false, []string{"Slow handler: %T/0@1", "key ada"}},
		"hung, unordered":    {[]testkit.Option{slow, testkit.Ordering(ackpolicy.Unordered, 4)}, ackpolicy.NackOnError, hang, false, []string{"Slow handler: %T/0@1"}},
		"poison key": {[]testkit.Option{testkit.Ordering(ackpolicy.OrderByKey, 4), fiveTimes}, ackpolicy.NackOnError, fail, false,
			[]string{"Held: %T/0@1", "attempt 5", errProvider.Error(), "key ada"}},
		"dead letters down": {nil, ackpolicy.RejectOnError, fail, true, []string{"Dead letter: %T/0@1", "its dead letter is not stored yet", errProvider.Error()}},
		"pending": {nil, ackpolicy.Manual, func(fixed <-chan struct{}) testkit.Handle {
			return func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() != 1 {
					d.Ack()
					return nil
				}
				go func() { <-fixed; d.Ack() }()
				return nil
			}
		}, false, []string{"%T/0 pending"}},
		"MaxUncommitted": {[]testkit.Option{func(c *ackpolicy.SubscriberConfig) { c.MaxUncommitted = 2 }}, ackpolicy.Manual, func(fixed <-chan struct{}) testkit.Handle {
			return func(_ *message.Message, d *ackpolicy.Delivery) error {
				go func() { <-fixed; d.Ack() }()
				return nil
			}
		}, false, []string{"Bound reached: %T/0", "MaxUncommitted (2) is reached: nothing more of the partition is handed out before %T/0@0 is settled."}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of the time is waited
			topic := testkit.NewTopic(t, 2, testkit.Keyed("bob", "ada", "bob", "ada", "cyd")...)
			fixed := make(chan struct{})
			fix := sync.OnceFunc(func() { close(fixed) })
			t.Cleanup(fix)
			cfg := testkit.Config(brokertest.Group(t), c.options...)
			if c.letters {
				cfg.DeadLetter = down{fixed}
			}
			sub := consume(t, cfg, topic, c.policy.Middleware, c.handle(fixed))
			b := open(t, page(sub))
			for i := range c.sees {
				c.sees[i] = replaceTopic(c.sees[i], topic)
			}
			b.sees(c.sees...)
			b.accessible()
			b.goes("partition?subscriber=0&partition=0&topic=" + topic)
			b.sees("Window", "What the words mean")
			b.accessible()
			fix()
			_ = sub.Retry("ada", topic, 0, 1) // an error where it does not wait for a delivery
			b.sees("Nothing holds " + topic + "/0.")
			b.goes("")
			b.sees(quiet, "up to date")
		})
	}
}

// A pause, by the page's own button, and its end.
func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 2)
	b := open(t, page(consume(t, testkit.Config(brokertest.Group(t)), topic, ackpolicy.Ack.Middleware, testkit.Succeed)))
	b.sees(quiet, topic+"/1 up to date")
	b.do(chromedp.Click("#s-0-pause"))
	b.sees("Paused all partitions of "+topic+".", "Somebody paused it", topic+"/1 paused")
	testkit.Produce(t, topic, 1, testkit.Keyed("ada")...)
	b.do(chromedp.Click("#s-0-resume"))
	b.sees("Resumed all partitions of "+topic+".", topic+"/1 up to date")
}

// A broker that cannot be reached shows while it lasts.
func TestLostBroker(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 2)
	var network brokertest.Network
	cfg := testkit.Config(brokertest.Group(t), func(c *ackpolicy.SubscriberConfig) { network.Use(c.Kafka.OverwriteSaramaConfig) })
	b := open(t, page(consume(t, cfg, topic, ackpolicy.Ack.Middleware, testkit.Succeed)))
	b.sees(quiet, topic+"/1 up to date")
	network.Cut()
	b.sees("Kafka: "+topic, "connect", "Do: Check that the brokers are up")
	b.accessible()
	network.Heal()
	b.sees(quiet, topic+"/1 up to date")
}

// Limits are changed while the page is open.
func TestLimits(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1)
	cfg := testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.OrderByKey, 8))
	sub := consume(t, cfg, topic, ackpolicy.Ack.Middleware, testkit.Succeed)
	b := open(t, page(sub))
	b.sees("at most 8 in flight per partition")
	b.do(chromedp.Click("#s-0-limits-sum"), chromedp.SendKeys("#s-0-in-flight", "3"), chromedp.SendKeys("#s-0-deliveries", "7"))
	b.accessible()
	b.do(chromedp.Click("#s-0-limit"))
	b.sees("The limits are changed.", "at most 3 in flight per partition")
	if st := sub.State().Subscriptions[0]; st.MaxInFlight != 3 || st.MaxDeliveries != 7 {
		t.Errorf("limits: %d in flight, %d deliveries", st.MaxInFlight, st.MaxDeliveries)
	}
}

// A record is given up on the page, with the keyboard alone, and what waits behind it continues.
func TestReject(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Keyed("ada", "ada", "bob")...)
	cfg := testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.OrderByKey, 4), backoff(time.Hour))
	acted := make(chan ackpolicy.ActedEvent, 10)
	cfg.Hooks.Acted = func(e ackpolicy.ActedEvent) { acted <- e }
	timeline := &ackpolicyweb.Timeline{}
	cfg.Hooks = ackpolicy.JoinHooks(cfg.Hooks, timeline.Hooks())
	options := page(consume(t, cfg, topic, ackpolicy.NackOnError.Middleware, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return errors.New("no such customer")
		}
		return nil
	}))
	options.Timeline = timeline
	b := open(t, options)
	b.goes("partition?subscriber=0&partition=0&topic=" + topic)
	b.sees("holds the partition", "no such customer", "wait behind it", "Held: "+topic+"/0@0") // which it is after some seconds
	// What a screen reader announces stays as it is, though ages on the page change.
	announced := eval[[2]int](b, `new Promise(done => {
		const seen = [0, 0];
		["verdict", "record"].forEach((id, i) => new MutationObserver(() => seen[i]++).observe(
			document.getElementById(id), {subtree: true, childList: true, characterData: true, attributes: true}));
		setTimeout(() => done(seen), 2500);
	})`)
	if announced[0] != 0 || announced[1] == 0 {
		t.Errorf("changes of what is announced, and of what is not: %v", announced)
	}
	b.do(chromedp.Focus("#record-0-sum"), chromedp.KeyEvent("\r"))
	b.do(chromedp.KeyEvent("\t"), chromedp.KeyEvent("order was cancelled"))
	// The page continues meanwhile, and takes neither focus nor text away.
	was := eval[string](b, `document.getElementById("time").textContent`)
	testkit.Eventually(t, "a refresh", func() bool { return eval[string](b, `document.getElementById("time").textContent`) != was })
	if typed := eval[string](b, `document.activeElement.id + ": " + document.activeElement.value`); typed != "record-0-why: order was cancelled" {
		t.Errorf("focus and text: %s", typed)
	}
	b.do(chromedp.KeyEvent("\r"))
	b.sees(topic+"/0@0 is given up.", "Nothing holds "+topic+"/0.", "reject "+topic+"/0 by ada, "+topic+"/0@0: order was cancelled")
	b.accessible()
	if e := testkit.Await(t, "Acted", acted); e.By != "ada" || e.Action != ackpolicy.ActionReject || e.Offset != 0 || e.Reason != "order was cancelled" {
		t.Errorf("acted: %+v", e)
	}
}

func backoff(d time.Duration) testkit.Option {
	return func(c *ackpolicy.SubscriberConfig) { c.Backoff = func(int, error) time.Duration { return d } }
}

// fiveTimes lets a record fail four times in a row, and then wait.
func fiveTimes(c *ackpolicy.SubscriberConfig) {
	c.Backoff = func(attempt int, _ error) time.Duration {
		if attempt < 5 {
			return 50 * time.Millisecond
		}
		return time.Hour
	}
}

func replaceTopic(text, topic string) string { return strings.ReplaceAll(text, "%T", topic) }
