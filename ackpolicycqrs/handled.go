package ackpolicycqrs

import (
	"slices"
	"sync"

	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// handled is the marshaler of a processor. It acks the messages that the processor ignores: a
// processor asks for the name of each message, and returns nil if no handler is for it.
type handled struct {
	cqrs.CommandEventMarshaler

	mu    sync.RWMutex
	names map[string][]string // of the messages that there are handlers for, by the name of the Router's handler
}

// add is called for each handler, before its first message.
func (h *handled) add(handler string, message any) {
	name := h.Name(message)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.names == nil {
		h.names = map[string][]string{}
	}
	h.names[handler] = append(h.names[handler], name)
}

// NameFromMessage implements cqrs.CommandEventMarshaler.
func (h *handled) NameFromMessage(msg *message.Message) string {
	name := h.CommandEventMarshaler.NameFromMessage(msg)
	h.mu.RLock()
	names := h.names[message.HandlerNameFromCtx(msg.Context())]
	h.mu.RUnlock()
	if len(names) > 0 && !slices.Contains(names, name) {
		_ = ackpolicy.Settle(msg.Context(), ackpolicy.ErrAck)
	}
	return name
}
