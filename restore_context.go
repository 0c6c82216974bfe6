package ackpolicy

import "github.com/ThreeDotsLabs/watermill/message"

// RestoreContext is a middleware for the inside of Watermill's PoisonQueue, Retry
// and CircuitBreaker. When the handler has returned,
//
//   - the message has the context back that it came with: Timeout leaves it an
//     ended one, with which a PoisonQueue around it could not publish;
//   - the error of a handler whose context was ended by us, because the partition was
//     revoked or the subscriber closes, is a signal ([IsSignal]), whatever library made it:
//     its record is left to the next owner, and is neither poisoned nor retried.
//
// Without it IsSignal recognizes ctx.Err() and context.Cause(ctx), of the message's context
// and of those derived from it, but not a context.Canceled, or a text, that a library put in their place.
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
