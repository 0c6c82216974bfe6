package ackpolicy

import "github.com/ThreeDotsLabs/watermill/message"

// RestoreContext is a middleware to put inside Watermill's PoisonQueue, Retry and
// CircuitBreaker. When the handler has returned,
//
//   - it gives the message back the context that it came with. Timeout leaves it an ended
//     context, with which a PoisonQueue around it cannot publish.
//   - it makes the error of a handler whose context we ended (the partition was revoked,
//     or the subscriber closes) a signal, as reported by [IsSignal], whatever library
//     created it. The record is left to the next owner, and is neither poisoned nor retried.
//
// Without it, IsSignal recognizes ctx.Err() and context.Cause(ctx) of the message's context
// and of contexts derived from it, but not an error that a library returns in their place.
func RestoreContext(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		ctx := msg.Context()
		defer msg.SetContext(ctx)
		produced, err = h(msg)
		if err == nil {
			return produced, nil
		}
		if d, ok := FromContext(ctx); ok {
			err = d.asStopped(err)
		}
		return produced, err
	}
}
