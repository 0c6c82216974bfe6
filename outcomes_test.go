package ackpolicy_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// verb is a method of the Delivery that settles it.
type verb = func(d *ackpolicy.Delivery) bool

var verbs = []struct {
	name string
	call verb
	asks fate
}{
	{"Ack", (*ackpolicy.Delivery).Ack, acked},
	{"Nack", (*ackpolicy.Delivery).Nack, nacked},
	{"NackAfter", func(d *ackpolicy.Delivery) bool { return d.NackAfter(20 * time.Millisecond) }, nacked},
	{"Reject", func(d *ackpolicy.Delivery) bool { return d.Reject(errBoom) }, rejected},
}

// outcomes are the rows of the table: all ways in which the first delivery of a record ends.
func outcomes() []outcome {
	var (
		onSuccess = under(acked, acked, acked, left)
		onError   = under(acked, rejected, nacked, left)
		recoverer = []message.HandlerMiddleware{middleware.Recoverer}
		timeout   = []message.HandlerMiddleware{middleware.Timeout(20 * time.Millisecond)}
	)
	rows := []outcome{
		{name: "success", handler: returns(nil), want: onSuccess},
		{name: "success, published", handler: produces(nil), publishes: true, want: onSuccess},
		{name: "publish failure", handler: produces(nil), failPublish: true, want: onError},
		{name: "error", handler: returns(errBoom), want: onError, router: "boom"},
		{name: "error, with messages", handler: produces(errBoom), want: onError, router: "boom"},
		{name: "panic", handler: panics("boom"), want: onError, router: "panic boom"},
		{name: "panic, Recoverer inside", handler: panics("boom"), inside: recoverer, want: onError, router: "recovered boom"},
		{name: "panic, Recoverer outside", handler: panics("boom"), outside: recoverer, want: onError, router: "recovered boom"},
		{name: "Timeout inside", handler: waits, inside: timeout, want: onError, router: "context deadline exceeded"},
		{name: "Timeout outside", handler: waits, outside: timeout, want: onError, router: "context deadline exceeded"},
		{name: "its own context.Canceled", handler: returns(context.Canceled), want: onError, router: "context canceled"},
		{name: "NackAfter", handler: returns(ackpolicy.NackAfter(20 * time.Millisecond)), signal: true, want: always(nacked)},
		{name: "RejectWith", handler: returns(ackpolicy.RejectWith(errBoom)), signal: true, want: always(rejected)},
		{
			name: "nack beats reject and ack", signal: true, want: always(nacked),
			handler: returns(errors.Join(ackpolicy.ErrAck, ackpolicy.ErrReject, ackpolicy.ErrNack)),
		},
		{
			name: "reject beats ack", signal: true, want: always(rejected),
			handler: returns(errors.Join(ackpolicy.ErrAck, ackpolicy.ErrReject)),
		},
		{name: "stopped before it was settled", handler: waits, stopped: true, want: always(left), router: ackpolicy.ErrClosing.Error()},
	}
	for _, signal := range []struct {
		err  error
		fate fate
	}{{ackpolicy.ErrAck, acked}, {ackpolicy.ErrNack, nacked}, {ackpolicy.ErrReject, rejected}} {
		rows = append(rows, signalled(signal.err, signal.fate)...)
	}
	for _, v := range verbs {
		early := func(then, router string, end handlerFunc) {
			rows = append(rows, outcome{
				name: v.name + " called, then " + then, asked: v.asks, want: always(v.asks), router: router,
				handler: func(c *cell, d *ackpolicy.Delivery, msg *message.Message) ([]*message.Message, error) {
					c.call(v.call, d)
					return end(c, d, msg)
				},
			})
		}
		early("success", "", returns(nil))
		early("an error", "boom", returns(errBoom))
		early("a panic", "panic boom", panics("boom"))
		early("ErrAck", "", returns(ackpolicy.ErrAck))
		early("ErrNack", "", returns(ackpolicy.ErrNack))
		rows = append(rows, outcome{
			name: v.name + " called after a success", late: v.call, asked: v.asks,
			handler: returns(nil), want: under(acked, acked, acked, v.asks),
		}, outcome{
			name: v.name + " called after an error", late: v.call, asked: v.asks,
			handler: returns(errBoom), want: under(acked, rejected, nacked, v.asks), router: "boom",
		})
	}
	return rows
}

// signalled are the ways for a signal to reach the policy.
func signalled(signal error, f fate) []outcome {
	var (
		recoverer = []message.HandlerMiddleware{middleware.Recoverer}
		wrapped   = fmt.Errorf("order 7: %w", signal)
		deep      = fmt.Errorf("shop: %w", errors.Join(errBoom, fmt.Errorf("order: %w", wrapped)))
	)
	rows := []outcome{
		{name: "returned", handler: produces(signal)}, // and not published
		{name: "wrapped", handler: returns(wrapped)},
		{name: "joined", handler: returns(errors.Join(errBoom, signal))},
		{name: "deep", handler: returns(deep)},
		{name: "panicked", handler: panics(signal)},
		{name: "panicked, deep", handler: panics(deep)},
		{name: "panicked, Recoverer inside", handler: panics(wrapped), inside: recoverer},
		{name: "panicked, Recoverer outside", handler: panics(wrapped), outside: recoverer},
	}
	for i := range rows {
		rows[i].name = signal.Error() + " " + rows[i].name
		rows[i].signal = true
		rows[i].want = always(f)
	}
	return rows
}

func returns(err error) handlerFunc {
	return func(*cell, *ackpolicy.Delivery, *message.Message) ([]*message.Message, error) { return nil, err }
}

func produces(err error) handlerFunc {
	return func(*cell, *ackpolicy.Delivery, *message.Message) ([]*message.Message, error) { return output(), err }
}

func panics(v any) handlerFunc {
	return func(*cell, *ackpolicy.Delivery, *message.Message) ([]*message.Message, error) { panic(v) }
}

// waits for the end of its context, and stops the service if that is what ends it.
func waits(c *cell, _ *ackpolicy.Delivery, msg *message.Message) ([]*message.Message, error) {
	<-msg.Context().Done()
	return nil, context.Cause(msg.Context())
}
