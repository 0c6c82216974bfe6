package ackpolicy_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// TestEveryCell runs every outcome under every policy on two records. The table's outcome is that of the first delivery
// of record 0. All other deliveries succeed (under Manual: are acked), so that record 1 shows whether record 0 pins the
// offset that Kafka stores.
func TestEveryCell(t *testing.T) {
	t.Parallel()
	for _, o := range outcomes() {
		t.Run(o.name, func(t *testing.T) {
			for _, policy := range testkit.Policies {
				t.Run(policy.String(), func(t *testing.T) {
					t.Parallel()
					group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
					testCell(t, o, policy, topic, testkit.Config(group), func(want int64) { testkit.WantCommitted(t, group, topic, 0, want) })
				})
			}
		})
	}
}

// TestEveryCellInMemory is TestEveryCell on the Kafka of package ackpolicytest.
func TestEveryCellInMemory(t *testing.T) {
	t.Parallel()
	for _, o := range outcomes() {
		for _, policy := range testkit.Policies {
			t.Run(o.name+"/"+policy.String(), func(t *testing.T) {
				t.Parallel()
				ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
					k.Produce("topic", message.NewMessage("", []byte("0")), message.NewMessage("", []byte("1")))
					testCell(t, o, policy, "topic", k.Config(testkit.Config("group")), func(want int64) {
						if got := k.Committed("group", "topic", 0); got != want {
							t.Errorf("stored offset: got %d, want %d", got, want)
						}
					})
				})
			})
		}
	}
}

func testCell(t *testing.T, o outcome, policy ackpolicy.Policy, topic string, cfg ackpolicy.SubscriberConfig, wantCommitted func(int64)) {
	want := o.want[policy]
	deliveries, stored := o.expect(policy)
	if o.stopped {
		cfg.DrainTimeout = 200 * time.Millisecond
	}

	s := testkit.NewService(t)
	c := &cell{outcome: o, policy: policy, service: s}
	out := &testkit.FailingPublisher{Fail: o.failPublish}
	s.Router.AddMiddleware(c.observe)
	s.Router.AddMiddleware(o.outside...)
	s.Router.AddMiddleware(policy.Middleware)
	s.Router.AddMiddleware(o.inside...)
	s.Router.AddHandler("handler", topic, testkit.NewSubscriber(t, cfg, s.Log), "out", out, c.handle)
	s.Start(t)
	s.Wait(t, len(deliveries))
	s.Stop()

	s.Want(t, deliveries...)
	wantCommitted(stored)
	first := s.All()[0]
	if got := first.Status(); got != want.Status() {
		t.Errorf("status of the first delivery: got %v, want %v", got, want.Status())
	}
	if got := c.reached[0]; got != o.router {
		t.Errorf("what reached the Router: got %q, want %q", got, o.router)
	}
	if published := o.published(want); out.Count() != published {
		t.Errorf("published %d messages, want %d", out.Count(), published)
	}
	if c.verdict != nil && *c.verdict != (want == o.asked) {
		t.Errorf("the verb returned %v where the record is %v", *c.verdict, want)
	}
	if acked := policy == ackpolicy.AckFirst; (c.before == ackpolicy.Acked) != acked {
		t.Errorf("status when the handler started: %v", c.before)
	}
	c.checkLog(t, want, topic)
}

type handlerFunc = func(c *cell, d *ackpolicy.Delivery, msg *message.Message) ([]*message.Message, error)

type outcome struct {
	name            string
	handler         handlerFunc
	inside, outside []message.HandlerMiddleware // of the policy's
	late            testkit.Verb                // called on record 0 while record 1 is handled: after the handler returned
	asked           testkit.Fate                // what the verb asks for
	failPublish     bool                        // the first time
	publishes       bool                        // what is not refused
	stopped         bool                        // while the handler runs
	signal          bool                        // so nothing is logged as an error, but a reject
	want            testkit.Fates
	router          string // what reaches the Router from the first delivery
}

// expect returns the deliveries, and the offset that Kafka stores at the end.
func (o outcome) expect(policy ackpolicy.Policy) (deliveries []string, stored int64) {
	switch want := o.want[policy]; {
	case o.stopped && want == testkit.Left:
		return []string{"0#1"}, 0
	case o.stopped:
		return []string{"0#1"}, 1
	case want == testkit.Left:
		return []string{"0#1", "1#1"}, 0
	case want == testkit.Nacked && o.late != nil && policy == ackpolicy.Manual:
		return []string{"0#1", "1#1", "0#2"}, 2
	case want == testkit.Nacked:
		return []string{"0#1", "0#2", "1#1"}, 2
	default:
		return []string{"0#1", "1#1"}, 2
	}
}

func (o outcome) published(want testkit.Fate) int {
	if o.publishes && !o.failPublish || o.failPublish && want == testkit.Nacked {
		return 1
	}
	return 0
}

// cell is one outcome under one policy.
type cell struct {
	outcome
	policy  ackpolicy.Policy
	service *testkit.Service

	mu      sync.Mutex
	reached []string         // the Router, a delivery
	before  ackpolicy.Status // of the first delivery when its handler started
	verdict *bool            // what the verb returned
}

func (c *cell) handle(msg *message.Message) ([]*message.Message, error) {
	d, ok := ackpolicy.FromMessage(msg)
	if !ok {
		return nil, errors.New("a message without a Delivery")
	}
	first := d.Offset() == 0 && d.Attempt() == 1
	if first {
		c.before = d.Status()
	}
	c.service.Add(d)
	if first {
		return c.outcome.handler(c, d, msg)
	}
	if d.Offset() == 1 && c.late != nil {
		c.call(c.late, c.service.All()[0])
	}
	if c.policy == ackpolicy.Manual {
		d.Ack()
	}
	if c.failPublish && d.Offset() == 0 {
		return testkit.Output(), nil
	}
	return nil, nil
}

// call calls a verb from another goroutine.
func (c *cell) call(v testkit.Verb, d *ackpolicy.Delivery) {
	result := make(chan bool)
	go func() { result <- v(d) }()
	verdict := <-result
	c.verdict = &verdict
}

// observe is the outermost middleware: what reaches it reaches the Router.
func (c *cell) observe(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		defer func() {
			v := recover()
			c.mu.Lock()
			c.reached = append(c.reached, testkit.Describe(err, v))
			c.mu.Unlock()
			if v != nil {
				panic(v)
			}
		}()
		return h(msg)
	}
}

// checkLog: a reject without a dead letter destination is an error, a signal is none.
func (c *cell) checkLog(t *testing.T, want testkit.Fate, topic string) {
	t.Helper()
	logged := c.service.Log.At("error")
	rejects := testkit.Containing(logged, topic, "Record rejected")
	if (want == testkit.Rejected) != (len(rejects) == 1) {
		t.Errorf("%d lines about a reject, and the record is %v", len(rejects), want)
	}
	if c.signal && len(logged) > len(rejects) {
		t.Errorf("a signal was logged as an error: %v", logged)
	}
}

// outcomes are the rows of the table: all ways in which the first delivery of a record ends.
func outcomes() []outcome {
	var (
		onSuccess = testkit.Under(testkit.Acked, testkit.Acked, testkit.Acked, testkit.Left)
		onError   = testkit.Under(testkit.Acked, testkit.Rejected, testkit.Nacked, testkit.Left)
		recoverer = []message.HandlerMiddleware{middleware.Recoverer}
		timeout   = []message.HandlerMiddleware{middleware.Timeout(20 * time.Millisecond)}
	)
	rows := []outcome{
		{name: "success", handler: returns(nil), want: onSuccess},
		{name: "success, published", handler: produces(nil), publishes: true, want: onSuccess},
		{name: "publish failure", handler: produces(nil), failPublish: true, want: onError},
		{name: "error", handler: returns(testkit.ErrBoom), want: onError, router: "boom"},
		{name: "error, with messages", handler: produces(testkit.ErrBoom), want: onError, router: "boom"},
		{name: "panic", handler: panics("boom"), want: onError, router: "panic boom"},
		{name: "panic, Recoverer inside", handler: panics("boom"), inside: recoverer, want: onError, router: "recovered boom"},
		{name: "panic, Recoverer outside", handler: panics("boom"), outside: recoverer, want: onError, router: "recovered boom"},
		{name: "Timeout inside", handler: waits, inside: timeout, want: onError, router: "context deadline exceeded"},
		{name: "Timeout outside", handler: waits, outside: timeout, want: onError, router: "context deadline exceeded"},
		{name: "its own context.Canceled", handler: returns(context.Canceled), want: onError, router: "context canceled"},
		{name: "NackAfter", handler: returns(ackpolicy.NackAfter(20 * time.Millisecond)), signal: true, want: testkit.Always(testkit.Nacked)},
		{name: "RejectWith", handler: returns(ackpolicy.RejectWith(testkit.ErrBoom)), signal: true, want: testkit.Always(testkit.Rejected)},
		{
			name: "nack beats reject and ack", signal: true, want: testkit.Always(testkit.Nacked),
			handler: returns(errors.Join(ackpolicy.ErrAck, ackpolicy.ErrReject, ackpolicy.ErrNack)),
		},
		{
			name: "reject beats ack", signal: true, want: testkit.Always(testkit.Rejected),
			handler: returns(errors.Join(ackpolicy.ErrAck, ackpolicy.ErrReject)),
		},
		{name: "stopped before it was settled", handler: waits, stopped: true, want: testkit.Always(testkit.Left), router: ackpolicy.ErrClosing.Error()},
	}
	for _, signal := range []struct {
		err  error
		fate testkit.Fate
	}{{ackpolicy.ErrAck, testkit.Acked}, {ackpolicy.ErrNack, testkit.Nacked}, {ackpolicy.ErrReject, testkit.Rejected}} {
		rows = append(rows, signalled(signal.err, signal.fate)...)
	}
	for _, v := range testkit.Verbs {
		early := func(then, router string, end handlerFunc) {
			rows = append(rows, outcome{
				name: v.Name + " called, then " + then, asked: v.Asks, want: testkit.Always(v.Asks), router: router,
				handler: func(c *cell, d *ackpolicy.Delivery, msg *message.Message) ([]*message.Message, error) {
					c.call(v.Call, d)
					return end(c, d, msg)
				},
			})
		}
		early("success", "", returns(nil))
		early("an error", "boom", returns(testkit.ErrBoom))
		early("a panic", "panic boom", panics("boom"))
		early("ErrAck", "", returns(ackpolicy.ErrAck))
		early("ErrNack", "", returns(ackpolicy.ErrNack))
		rows = append(rows, outcome{
			name: v.Name + " called after a success", late: v.Call, asked: v.Asks,
			handler: returns(nil), want: testkit.Under(testkit.Acked, testkit.Acked, testkit.Acked, v.Asks),
		}, outcome{
			name: v.Name + " called after an error", late: v.Call, asked: v.Asks,
			handler: returns(testkit.ErrBoom), want: testkit.Under(testkit.Acked, testkit.Rejected, testkit.Nacked, v.Asks), router: "boom",
		})
	}
	return rows
}

// signalled are the ways for a signal to reach the policy.
func signalled(signal error, f testkit.Fate) []outcome {
	var (
		recoverer = []message.HandlerMiddleware{middleware.Recoverer}
		wrapped   = fmt.Errorf("order 7: %w", signal)
		deep      = fmt.Errorf("shop: %w", errors.Join(testkit.ErrBoom, fmt.Errorf("order: %w", wrapped)))
	)
	rows := []outcome{
		{name: "returned", handler: produces(signal)}, // and not published
		{name: "wrapped", handler: returns(wrapped)},
		{name: "joined", handler: returns(errors.Join(testkit.ErrBoom, signal))},
		{name: "deep", handler: returns(deep)},
		{name: "panicked", handler: panics(signal)},
		{name: "panicked, deep", handler: panics(deep)},
		{name: "panicked, Recoverer inside", handler: panics(wrapped), inside: recoverer},
		{name: "panicked, Recoverer outside", handler: panics(wrapped), outside: recoverer},
	}
	for i := range rows {
		rows[i].name = signal.Error() + " " + rows[i].name
		rows[i].signal = true
		rows[i].want = testkit.Always(f)
	}
	return rows
}

func returns(err error) handlerFunc {
	return func(*cell, *ackpolicy.Delivery, *message.Message) ([]*message.Message, error) { return nil, err }
}

func produces(err error) handlerFunc {
	return func(*cell, *ackpolicy.Delivery, *message.Message) ([]*message.Message, error) {
		return testkit.Output(), err
	}
}

func panics(v any) handlerFunc {
	return func(*cell, *ackpolicy.Delivery, *message.Message) ([]*message.Message, error) { panic(v) }
}

// waits for the end of its context, and stops the service if that is what ends it.
func waits(c *cell, _ *ackpolicy.Delivery, msg *message.Message) ([]*message.Message, error) {
	<-msg.Context().Done()
	return nil, context.Cause(msg.Context())
}
