package ackpolicy

import (
	"context"
	"errors"
	"math/bits"
	"runtime/debug"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
)

// HandleBatch returns a handler for the messages of a BatchSubscriber, which calls h with the
// messages of a batch. It understands the following results of h:
//
//   - nil: all messages have succeeded.
//   - BatchError: some messages have failed, the others succeeded.
//   - FailedAt: one message failed, and those behind it were not handled.
//   - a signal, such as NackAfter(time.Minute): it applies to all messages. This is how to say
//     that something all of them need is not available.
//   - another error, or a panic: the batch failed, and nothing is known about a single message.
//     h is called again with each half of it, and so on, until the messages that fail alone are
//     found. For them the policy decides, as for a BatchError; the others have succeeded. Messages
//     that are ordered behind a failed one are not handled in this batch: they are handed out
//     again, and that delivery does not count. So are the others if h fails again and again.
//
// Messages that h has settled by their Delivery, or by msg.Ack or msg.Nack, are settled, and h is
// not called with them again.
//
// ctx is the context of the message that stands for the batch. Middlewares see that message
// only, and no error if single messages failed.
//
// A message of another subscriber is a batch of one message.
func HandleBatch(h func(ctx context.Context, messages []*message.Message) error) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		b, ok := BatchFromMessage(msg)
		if !ok {
			return ofSingle(h(msg.Context(), []*message.Message{msg}))
		}
		if b.sub.sub.config.acksFirst() && !b.wrapped.Load() { // no middleware is around this handler
			if err := b.ackAll(); err != nil {
				return err
			}
		}
		s := &splitter{b: b, ctx: msg.Context(), handler: h, most: 2 * bits.Len(uint(len(b.all)))}
		return s.handle()
	}
}

// ofSingle returns the error of the only message of a batch.
func ofSingle(err error) error {
	if all, ok := errors.AsType[BatchError](err); ok {
		if len(all) == 0 {
			return nil
		}
		if single := all[0]; single != nil && len(all) == 1 {
			return single
		}
	}
	if at, ok := errors.AsType[*failedAt](err); ok && at.index == 0 && at.err != nil {
		return at.err
	}
	return err
}

// splitter finds the messages because of which a batch fails.
type splitter struct {
	b       *Batch
	ctx     context.Context
	handler func(ctx context.Context, messages []*message.Message) error
	failed  []int // messages behind these in their lanes are not handled
	fails   int   // calls that failed, since the last that did not
	most    int   // of these
}

func (s *splitter) handle() error {
	all := make([]int, len(s.b.all))
	for i := range all {
		all[i] = i
	}
	if len(all) == 1 {
		return ofSingle(s.handler(s.ctx, s.b.messages))
	}
	err := s.call(s.b.messages)
	if whole(err) != nil && (s.ctx.Err() != nil || IsSignal(err) || !slices.ContainsFunc(all, s.open)) {
		return err // it is known for whom, or there is nothing to be found
	}
	s.apply(all, err)
	return nil
}

// whole returns an error that says nothing about single messages, or nil.
func whole(err error) error {
	if _, ok := errors.AsType[BatchError](err); ok {
		return nil
	}
	if _, ok := errors.AsType[*failedAt](err); ok {
		return nil
	}
	return err
}

// call calls the handler. A panic is an error.
func (s *splitter) call(messages []*message.Message) (err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		if r := recover(); r != nil {
			err = middleware.RecoveredPanicError{V: r, Stacktrace: string(debug.Stack())}
		}
	}()
	err = s.handler(s.ctx, messages)
	returned = true
	return err
}

// apply records the result of a call with some messages of the batch, by index.
func (s *splitter) apply(some []int, err error) {
	if err == nil {
		s.fails = 0
		return
	}
	if all, ok := errors.AsType[BatchError](err); ok && s.applyAll(some, all) {
		return
	}
	if at, ok := errors.AsType[*failedAt](err); ok && at.index >= 0 && at.index < len(some) {
		s.fails = 0
		s.fail(some[at.index], at.err)
		for _, i := range some[at.index+1:] {
			s.b.Leave(i)
		}
		return
	}
	s.fails++
	switch {
	case IsSignal(err):
		for _, i := range some {
			s.b.Fail(i, err)
		}
	case len(some) == 1:
		s.fail(some[0], err)
	default:
		s.half(some[:len(some)/2])
		s.half(some[len(some)/2:])
	}
}

// applyAll records a BatchError. It returns false if that names messages that there are not.
func (s *splitter) applyAll(some []int, all BatchError) bool {
	for i := range all {
		if i < 0 || i >= len(some) {
			return false
		}
	}
	s.fails = 0
	for i, err := range all {
		s.fail(some[i], err)
	}
	return true
}

func (s *splitter) fail(i int, err error) {
	s.failed = append(s.failed, i)
	s.b.Fail(i, err)
}

// half calls the handler with a part of the batch that failed.
func (s *splitter) half(some []int) {
	var out []int
	var messages []*message.Message
	for _, i := range some {
		switch {
		case !s.open(i):
		case s.ctx.Err() != nil: // a Timeout
			s.b.Fail(i, s.ctx.Err())
		case s.fails > s.most || s.waits(i):
			s.b.Leave(i)
		default:
			out, messages = append(out, i), append(messages, s.b.messages[i])
		}
	}
	if len(out) > 0 {
		s.apply(out, s.call(messages))
	}
}

// open reports whether a message is not settled yet.
func (s *splitter) open(i int) bool {
	d := s.b.all[i]
	d.settleAs(d.msg, s.b.contract())
	return d.Status() == Pending
}

// waits reports whether a message is behind a failed one in its lane.
func (s *splitter) waits(i int) bool {
	for _, f := range s.failed {
		if f < i && consumer.SameLane(&s.b.all[f].kafka, &s.b.all[i].kafka) {
			return true
		}
	}
	return false
}
