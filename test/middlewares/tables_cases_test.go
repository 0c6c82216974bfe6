package middlewares_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/sony/gobreaker"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// ending is a way for a handler to end its first calls for a record. All further ones succeed.
type ending struct {
	name        string
	calls       int // that end so
	end         func(msg *message.Message, d *ackpolicy.Delivery) error
	failPublish bool // the first time
	acks        bool // though the handler has not succeeded
}

func failing(err error) func(*message.Message, *ackpolicy.Delivery) error {
	return func(*message.Message, *ackpolicy.Delivery) error { return err }
}

func panicking(v any) func(*message.Message, *ackpolicy.Delivery) error {
	return func(*message.Message, *ackpolicy.Delivery) error { panic(v) }
}

var endings = []ending{
	{name: "succeeds"},
	{name: "fails once", calls: 1, end: failing(testkit.ErrBoom)},
	{name: "fails twice", calls: 2, end: failing(testkit.ErrBoom)},
	{name: "panics once", calls: 1, end: panicking("boom")},
	{name: "waits for its deadline once", calls: 1, end: func(msg *message.Message, _ *ackpolicy.Delivery) error {
		if _, ok := msg.Context().Deadline(); !ok {
			return nil
		}
		<-msg.Context().Done()
		return msg.Context().Err()
	}},
	{name: "cannot publish once", failPublish: true},
	{name: "returns ErrAck", calls: 1, end: failing(ackpolicy.ErrAck), acks: true},
	{name: "returns ErrNack", calls: 1, end: failing(ackpolicy.ErrNack)},
	{name: "returns ErrReject", calls: 1, end: failing(ackpolicy.ErrReject)},
	{name: "panics with ErrNack", calls: 1, end: panicking(fmt.Errorf("order 7: %w", ackpolicy.ErrNack))},
	{name: "panics with ErrReject", calls: 1, end: panicking(fmt.Errorf("order 7: %w", ackpolicy.ErrReject))},
	{name: "calls d.Nack(), then fails", calls: 1, end: func(_ *message.Message, d *ackpolicy.Delivery) error {
		d.Nack()
		return testkit.ErrBoom
	}},
}

// variant is one of Watermill's middlewares, in one configuration.
type variant struct {
	name     string
	only     []string // endings; nil: all
	classify func(error) (ackpolicy.Policy, bool)
	build    builder
	stack    bool // what is built contains our middleware
}

type builder = func(chain) message.HandlerMiddleware

// chain is what a builder may need of the place that it builds for.
type chain struct {
	t         *testing.T
	ours      ackpolicy.Middleware
	publisher message.Publisher
	note      func(text string) // keeps a remark for the table
}

func nothing(chain) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc { return h }
}

// plain is for middlewares that have no state and need nothing.
func plain(mw message.HandlerMiddleware) builder {
	return func(chain) message.HandlerMiddleware { return mw }
}

const poisonTopic, brokenTopic = "poison", "poison, once broken"

func succeeded(err error) bool { return err == nil || ackpolicy.IsSignal(err) }

func notSignal(err error) bool { return !ackpolicy.IsSignal(err) }

func variants() []variant {
	atOnce := []string{"succeeds"}
	asItIs := func(r middleware.ExpiringKeyRepository) middleware.ExpiringKeyRepository { return r }
	perRecord := func(r middleware.ExpiringKeyRepository) middleware.ExpiringKeyRepository { return byRecord{r} }
	return []variant{
		{name: "CircuitBreaker", build: breaker(nil)},
		{name: "CircuitBreaker, filtered", build: breaker(succeeded)},
		{
			name: "CircuitBreaker, filtered, with a Recoverer inside", only: []string{"panics with ErrNack", "panics with ErrReject"},
			build: func(c chain) message.HandlerMiddleware {
				return func(h message.HandlerFunc) message.HandlerFunc {
					return breaker(succeeded)(c)(middleware.Recoverer(h))
				}
			},
		},
		{name: "CircuitBreaker, open at the first delivery", only: atOnce, build: openBreaker},
		{
			name: "CircuitBreaker, open at the first delivery, classified", only: atOnce, build: openBreaker,
			classify: func(err error) (ackpolicy.Policy, bool) { return ackpolicy.NackOnError, unavailable(err) },
		},
		{name: "CorrelationID", only: []string{"succeeds", "fails once"}, build: plain(middleware.CorrelationID)},
		{name: "Deduplicator", build: deduplicator(asItIs)},
		{name: "Deduplicator, by record", build: deduplicator(perRecord)},
		{name: "DelayOnError", build: delayOnError},
		{name: "Duplicator", build: plain(middleware.Duplicator)},
		{name: "IgnoreErrors", build: plain(middleware.NewIgnoreErrors([]error{testkit.ErrBoom}).Middleware)},
		{name: "IgnoreErrors, a signal among them", build: plain(middleware.NewIgnoreErrors([]error{testkit.ErrBoom, ackpolicy.ErrNack}).Middleware)},
		{name: "InstantAck", build: plain(middleware.InstantAck)},
		{name: "PoisonQueue", build: poisonQueue(poisonTopic, func(error) bool { return true })},
		{name: "PoisonQueue, filtered", build: poisonQueue(poisonTopic, notSignal)},
		{
			name: "PoisonQueue, filtered, while its topic is down", only: []string{"fails once", "returns ErrNack"},
			build: poisonQueue(brokenTopic, notSignal),
		},
		{name: "RandomFail, at the first delivery", only: atOnce, build: plain(atFirst(middleware.RandomFail(1)))},
		{name: "RandomPanic, at the first delivery", only: atOnce, build: plain(atFirst(middleware.RandomPanic(1)))},
		{name: "Recoverer", build: plain(middleware.Recoverer)},
		{name: "Retry", build: retry(nil)},
		{name: "Retry, filtered", build: retry(func(p middleware.RetryParams) bool { return notSignal(p.Err) })},
		{name: "Throttle", build: throttle},
		{name: "Timeout", build: timeout},
		{name: "All together", build: stack, stack: true},
	}
}

// atFirst applies the middleware to a record's first delivery only.
func atFirst(mw message.HandlerMiddleware) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc {
		first := mw(h)
		return func(msg *message.Message) ([]*message.Message, error) {
			if d, _ := ackpolicy.FromMessage(msg); d.Offset() == 0 && d.Attempt() == 1 {
				return first(msg)
			}
			return h(msg)
		}
	}
}

// breaker never opens, and notes what it counts.
func breaker(isSuccessful func(error) bool) builder {
	return func(c chain) message.HandlerMiddleware {
		return middleware.NewCircuitBreaker(gobreaker.Settings{
			IsSuccessful: isSuccessful,
			ReadyToTrip:  func(gobreaker.Counts) bool { c.note("counted as a failure"); return false },
		}).Middleware
	}
}

func openBreaker(chain) message.HandlerMiddleware {
	b := middleware.NewCircuitBreaker(gobreaker.Settings{ReadyToTrip: func(gobreaker.Counts) bool { return true }})
	_, _ = b.Middleware(func(*message.Message) ([]*message.Message, error) { return nil, testkit.ErrBoom })(nil)
	return atFirst(b.Middleware)
}

func deduplicator(wrap func(middleware.ExpiringKeyRepository) middleware.ExpiringKeyRepository) builder {
	return func(c chain) message.HandlerMiddleware {
		repository, err := middleware.NewMapExpiringKeyRepository(time.Minute)
		testkit.Check(c.t, err)
		return (&middleware.Deduplicator{Repository: wrap(repository), Timeout: time.Minute}).Middleware
	}
}

// delayOnError returns what becomes of the metadata that the middleware writes.
func delayOnError(c chain) message.HandlerMiddleware {
	d := &middleware.DelayOnError{InitialInterval: 20 * time.Millisecond, MaxInterval: time.Hour, Multiplier: 2}
	return func(h message.HandlerFunc) message.HandlerFunc {
		delayed := d.Middleware(h)
		return func(msg *message.Message) ([]*message.Message, error) {
			if msg.Metadata.Get(delay.DelayedForKey) != "" {
				c.note("the next attempt knows its delay")
			}
			produced, err := delayed(msg)
			if msg.Metadata.Get(delay.DelayedForKey) != "" {
				c.note("metadata written")
			}
			return produced, err
		}
	}
}

func poisonQueue(topic string, filter func(error) bool) builder {
	return func(c chain) message.HandlerMiddleware {
		mw, err := middleware.PoisonQueueWithFilter(c.publisher, topic, filter)
		testkit.Check(c.t, err)
		return mw
	}
}

func retry(should func(middleware.RetryParams) bool) builder {
	return plain(middleware.Retry{
		MaxRetries: 1, InitialInterval: time.Millisecond, MaxInterval: time.Millisecond, Multiplier: 1, ShouldRetry: should,
	}.Middleware)
}

func throttle(c chain) message.HandlerMiddleware {
	mw := middleware.NewThrottle(1, time.Millisecond).Middleware
	return func(h message.HandlerFunc) message.HandlerFunc {
		throttled := mw(h)
		return func(msg *message.Message) ([]*message.Message, error) {
			if d, _ := ackpolicy.FromMessage(msg); d.Status() == ackpolicy.Acked {
				c.note("acked before it waited")
			}
			return throttled(msg)
		}
	}
}

func timeout(c chain) message.HandlerMiddleware {
	mw := middleware.Timeout(20 * time.Millisecond)
	return func(h message.HandlerFunc) message.HandlerFunc {
		timed := mw(h)
		return func(msg *message.Message) ([]*message.Message, error) {
			produced, err := timed(msg)
			if errors.Is(msg.Context().Err(), context.Canceled) {
				c.note("leaves the message a cancelled context")
			}
			return produced, err
		}
	}
}

func stack(c chain) message.HandlerMiddleware {
	mws, err := allTogether(c.ours.Policy, c.publisher, poisonTopic)
	testkit.Check(c.t, err)
	return func(h message.HandlerFunc) message.HandlerFunc {
		for _, mw := range slices.Backward(mws) {
			h = mw(h)
		}
		return h
	}
}
