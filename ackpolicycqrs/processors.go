// Package ackpolicycqrs makes Watermill's CQRS processors and its request-reply component
// leave the fate of a record to its handler and its policy. Each function changes a
// configuration that the application has:
//
//	processor, err := cqrs.NewCommandProcessorWithConfig(router, ackpolicycqrs.CommandProcessor(config))
//
// The components work without it, too. It is needed for three things:
//
//   - Signals (ErrAck, ErrNack, ErrReject and what wraps them) in a processor with
//     AckCommandHandlingErrors, or a backend with AckCommandErrors: these replace the
//     handler's error by nil before the middleware sees it.
//   - Messages that a processor ignores, under the policy Manual, where they stay pending.
//   - Signals on a Router without the middleware.
package ackpolicycqrs

import (
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// CommandProcessor returns the configuration with two changes. A signal that a handler
// returns settles the command, whatever AckCommandHandlingErrors says. A command that the
// processor ignores, since its handler is for another one, is acked under every policy.
func CommandProcessor(c cqrs.CommandProcessorConfig) cqrs.CommandProcessorConfig {
	names := &handled{CommandEventMarshaler: c.Marshaler}
	if construct := c.SubscriberConstructor; construct != nil {
		c.SubscriberConstructor = func(p cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			names.add(p.HandlerName, p.Handler.NewCommand())
			return construct(p)
		}
	}
	if c.Marshaler != nil {
		c.Marshaler = names
	}
	if c.OnHandle == nil {
		c.OnHandle = func(p cqrs.CommandProcessorOnHandleParams) error {
			return p.Handler.Handle(p.Message.Context(), p.Command)
		}
	}
	handle := c.OnHandle
	c.OnHandle = func(p cqrs.CommandProcessorOnHandleParams) error {
		return ackpolicy.Settle(p.Message.Context(), handle(p))
	}
	return c
}

// EventProcessor returns the configuration with two changes. A signal that a handler
// returns settles the event. With AckOnUnknownEvent, an event that the processor ignores,
// since its handler is for another one, is acked under every policy.
func EventProcessor(c cqrs.EventProcessorConfig) cqrs.EventProcessorConfig {
	names := &handled{CommandEventMarshaler: c.Marshaler}
	if construct := c.SubscriberConstructor; construct != nil {
		c.SubscriberConstructor = func(p cqrs.EventProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			names.add(p.HandlerName, p.EventHandler.NewEvent())
			return construct(p)
		}
	}
	if c.Marshaler != nil && c.AckOnUnknownEvent {
		c.Marshaler = names
	}
	if c.OnHandle == nil {
		c.OnHandle = func(p cqrs.EventProcessorOnHandleParams) error {
			return p.Handler.Handle(p.Message.Context(), p.Event)
		}
	}
	handle := c.OnHandle
	c.OnHandle = func(p cqrs.EventProcessorOnHandleParams) error {
		return ackpolicy.Settle(p.Message.Context(), handle(p))
	}
	return c
}

// EventGroupProcessor is EventProcessor for groups. If an event has several handlers in
// its group, the first signal or error is that of the event: the handlers behind it do not
// run.
func EventGroupProcessor(c cqrs.EventGroupProcessorConfig) cqrs.EventGroupProcessorConfig {
	names := &handled{CommandEventMarshaler: c.Marshaler}
	if construct := c.SubscriberConstructor; construct != nil {
		c.SubscriberConstructor = func(p cqrs.EventGroupProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			for _, h := range p.EventGroupHandlers {
				names.add(p.EventGroupName, h.NewEvent())
			}
			return construct(p)
		}
	}
	if c.Marshaler != nil && c.AckOnUnknownEvent {
		c.Marshaler = names
	}
	if c.OnHandle == nil {
		c.OnHandle = func(p cqrs.EventGroupProcessorOnHandleParams) error {
			return p.Handler.Handle(p.Message.Context(), p.Event)
		}
	}
	handle := c.OnHandle
	c.OnHandle = func(p cqrs.EventGroupProcessorOnHandleParams) error {
		return ackpolicy.Settle(p.Message.Context(), handle(p))
	}
	return c
}
