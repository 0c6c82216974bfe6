package semantics_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func never(error) (ackpolicy.Policy, bool) { return ackpolicy.NackOnError, false }

func TestMiddlewareValidate(t *testing.T) {
	t.Parallel()
	type handlers = map[string]ackpolicy.Policy
	for name, c := range map[string]struct {
		mw   ackpolicy.Middleware
		want []string // in the error; nil: none
	}{
		"zero":           {mw: ackpolicy.Middleware{}},
		"a policy":       {mw: ackpolicy.Middleware{Policy: ackpolicy.NackOnError, Classify: never}},
		"no such policy": {mw: ackpolicy.Middleware{Policy: 9, Handlers: handlers{"orders": 7}}, want: []string{"Policy", "9", `"orders"`, "7"}},
		"Classify alone": {mw: ackpolicy.Middleware{Classify: never}, want: []string{"Classify", "Policy"}},
		"Classify, all first": {
			mw:   ackpolicy.Middleware{Classify: never, Handlers: handlers{"orders": ackpolicy.AckFirst}},
			want: []string{"Classify", "Policy"},
		},
		"Classify for one handler":        {mw: ackpolicy.Middleware{Classify: never, Handlers: handlers{"orders": ackpolicy.Manual}}},
		"settings alone":                  {mw: ackpolicy.Middleware{MaxAge: time.Minute, MaxDeliveries: 3}, want: []string{"MaxAge, MaxDeliveries", "Policy"}},
		"settings for one handler":        {mw: ackpolicy.Middleware{MaxDeliveries: 3, Handlers: handlers{"orders": ackpolicy.NackOnError}}},
		"settings out of range":           {mw: ackpolicy.Middleware{Policy: ackpolicy.NackOnError, MaxDeliveries: -2, MaxAge: -time.Hour}, want: []string{"MaxDeliveries: -2", "MaxAge: -1h"}},
		"no limits":                       {mw: ackpolicy.Middleware{Policy: ackpolicy.NackOnError, MaxDeliveries: ackpolicy.Unlimited, MaxAge: ackpolicy.Unlimited}},
		"ConfirmFirst":                    {mw: ackpolicy.Middleware{ConfirmFirst: true}},
		"ConfirmFirst without AckFirst":   {mw: ackpolicy.Middleware{ConfirmFirst: true, Policy: ackpolicy.Ack}, want: []string{"ConfirmFirst"}},
		"ConfirmFirst for one handler":    {mw: ackpolicy.Middleware{ConfirmFirst: true, Policy: ackpolicy.Ack, Handlers: handlers{"metrics": ackpolicy.AckFirst}}},
		"all of it in one error, at once": {mw: ackpolicy.Middleware{ConfirmFirst: true, Policy: ackpolicy.Ack, Handlers: handlers{"x": 7}}, want: []string{"ConfirmFirst", "7"}},
	} {
		err := c.mw.Validate()
		if (err != nil) != (c.want != nil) {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range c.want {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s in it", name, err, want)
			}
		}
	}
}

// AckFirst that nobody chose is logged once, at error level if a setting contradicts it. AckFirst that was chosen is not.
func TestForgottenPolicyIsTold(t *testing.T) {
	t.Parallel()
	type handlers = map[string]ackpolicy.Policy
	letters := func(cfg *ackpolicy.SubscriberConfig) { cfg.DeadLetter = &testkit.Flaky{} }
	limits := func(cfg *ackpolicy.SubscriberConfig) { cfg.MaxDeliveries, cfg.MaxAge = 3, time.Minute }
	for name, c := range map[string]struct {
		mw       message.HandlerMiddleware
		change   testkit.Option
		reported []string // in the one error line of ours; nil: none
		info     bool     // the same in an info line
	}{
		"Classify":               {mw: ackpolicy.Middleware{Classify: never}.Middleware, reported: []string{"Classify", "Policy", "handler_name=handler"}},
		"not in Handlers":        {mw: ackpolicy.Middleware{Handlers: handlers{"hander": ackpolicy.NackOnError}}.Middleware, reported: []string{"Middleware.Handlers", "handlers=hander", "handler_name=handler"}},
		"its own settings":       {mw: ackpolicy.Middleware{MaxDeliveries: 3}.Middleware, reported: []string{"MaxDeliveries", "Policy", "handler_name=handler"}},
		"in Handlers":            {mw: ackpolicy.Middleware{Handlers: handlers{"handler": ackpolicy.AckFirst}}.Middleware, change: letters},
		"DeadLetter":             {mw: ackpolicy.Middleware{}.Middleware, change: letters, reported: []string{"DeadLetter", "Policy", "handler_name=handler"}},
		"limits":                 {mw: ackpolicy.Middleware{}.Middleware, change: limits, reported: []string{"MaxAge, MaxDeliveries", "handler_name=handler"}},
		"chosen":                 {mw: ackpolicy.AckFirst.Middleware, change: letters},
		"chosen by ConfirmFirst": {mw: testkit.ConfirmFirst, change: letters},
		"nothing contradicts it": {mw: ackpolicy.Middleware{}.Middleware, info: true},
		"another policy":         {mw: ackpolicy.NackOnError.Middleware, change: letters},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := testkit.NewTopic(t, 1, testkit.Numbered(3)...)
			cfg := testkit.Config(brokertest.Group(t))
			if c.change != nil {
				c.change(&cfg)
			}
			s := testkit.Consume(t, cfg, topic, testkit.Succeed, c.mw)
			s.Wait(t, 3)
			s.Stop()
			logged := s.Log.At("error")
			if c.reported == nil && len(logged) > 0 || c.reported != nil && (len(logged) != 1 || len(testkit.Containing(logged, c.reported...)) != 1) {
				t.Errorf("want %q, got:\n%s", c.reported, strings.Join(logged, "\n"))
			}
			if lines := testkit.Containing(s.Log.At("info"), "Messages are acked before the handler runs", "handler_name=handler"); len(lines) > 1 || len(lines) == 1 != c.info {
				t.Errorf("info lines: %q", lines)
			}
			if len(testkit.Containing(s.Log.At("info"), "level=")) > 0 {
				t.Error("a line of two levels")
			}
		})
	}
}

// A name in Handlers that no handler has is logged as soon as that is certain.
func TestMisspeltHandlerIsTold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		names    []string // in Handlers
		silent   int      // handlers without a message, beside the one with
		handler  string
		reported string
	}{
		"misspelt":             {names: []string{"ordrs"}, handler: "orders", reported: "ordrs"},
		"right":                {names: []string{"orders"}, handler: "orders"},
		"may be another's":     {names: []string{"ordrs"}, handler: "orders", silent: 1},
		"too many for another": {names: []string{"ordrs", "metrcs"}, handler: "orders", silent: 1, reported: "metrcs, ordrs"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := testkit.NewLog(t)
				pubSub := gochannel.NewGoChannel(gochannel.Config{}, log)
				router, err := message.NewRouter(message.RouterConfig{}, log)
				testkit.Check(t, err)
				policies := map[string]ackpolicy.Policy{}
				for _, n := range c.names {
					policies[n] = ackpolicy.NackOnError
				}
				router.AddMiddleware(ackpolicy.Middleware{Policy: ackpolicy.RejectOnError, Handlers: policies, Logger: log}.Middleware)
				ok := func(*message.Message) error { return nil }
				router.AddConsumerHandler(c.handler, "topic", pubSub, ok)
				for i := range c.silent {
					router.AddConsumerHandler(fmt.Sprint("silent", i), "silence", pubSub, ok)
				}
				go func() { testkit.Check(t, router.Run(t.Context())) }()
				<-router.Running()
				for range 3 {
					testkit.Check(t, pubSub.Publish("topic", message.NewMessage("7", nil)))
				}
				synctest.Wait()
				time.Sleep(time.Minute)
				lines := testkit.Containing(log.At("error"), "Middleware.Handlers has names that no handler has")
				if (len(lines) == 1) != (c.reported != "") || len(testkit.Containing(lines, c.reported)) != len(lines) {
					t.Errorf("want %q, got %v", c.reported, lines)
				}
				testkit.Check(t, router.Close())
				testkit.Check(t, pubSub.Close())
			})
		})
	}
}
