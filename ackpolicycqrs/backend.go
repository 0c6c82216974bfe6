package ackpolicycqrs

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/components/requestreply"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Backend returns a backend for which signals of command handlers are not failures:
//
//   - ErrNack and NackAfter send no reply: the command comes again, and the caller waits.
//     The same is true of a handler that the subscriber stopped.
//   - ErrReject and RejectWith reply with the error.
//   - ErrAck replies as success does.
//
// In all three cases the signal settles the command, whatever AckCommandErrors says.
func Backend[Result any](b requestreply.Backend[Result]) requestreply.Backend[Result] {
	return backend[Result]{b}
}

type backend[Result any] struct{ requestreply.Backend[Result] }

func (b backend[Result]) OnCommandProcessed(ctx context.Context, p requestreply.BackendOnCommandProcessedParams[Result]) error {
	err := p.HandleErr
	if !ackpolicy.IsSignal(err) {
		return b.Backend.OnCommandProcessed(ctx, p)
	}
	switch ackpolicy.SignalOf(err) {
	case ackpolicy.ErrReject:
	case ackpolicy.ErrAck:
		p.HandleErr = nil
	default: // a nack, or the subscriber stopped the handler
		return err
	}
	if failed := b.Backend.OnCommandProcessed(ctx, p); failed != nil && !ackpolicy.IsSignal(failed) {
		return failed
	}
	return err
}
