package ackpolicycqrs

import (
	"context"
	"errors"

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
	signal := p.HandleErr
	switch {
	case !ackpolicy.IsSignal(signal):
		return b.Backend.OnCommandProcessed(ctx, p)
	case errors.Is(signal, ackpolicy.ErrNack):
		return signal
	case errors.Is(signal, ackpolicy.ErrReject):
	case errors.Is(signal, ackpolicy.ErrAck):
		p.HandleErr = nil
	default: // the handler was stopped
		return signal
	}
	if err := b.Backend.OnCommandProcessed(ctx, p); err != nil && !ackpolicy.IsSignal(err) {
		return err
	}
	return signal
}
