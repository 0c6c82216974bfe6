package ackpolicy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/kafkactx"
)

type deliveryKey struct{}

// deliveryContext is the context of a message. It is part of the Delivery, so it costs no
// allocation, and its channel is created when Done is first called. It ends when the
// delivery is finished, or with ErrRevoked or ErrClosing when we stop the handler. These
// are then its Err, the Err of contexts derived from it, and their context.Cause, so that
// IsSignal recognizes what a handler returns. By errors.Is they are context.Canceled.
type deliveryContext struct {
	d *Delivery

	mu    sync.Mutex
	done  chan struct{}
	err   error // nil while it has not ended
	after map[*func()]struct{}
}

func (c *deliveryContext) Deadline() (time.Time, bool) { return time.Time{}, false }

func (c *deliveryContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
	}
	return c.done
}

func (c *deliveryContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Value returns the delivery, the values of watermill-kafka's getters, and those of the
// context that was passed to Subscribe.
func (c *deliveryContext) Value(key any) any {
	if v, ok := c.own(key); ok {
		return v
	}
	return c.d.kafka.Context().Value(key)
}

func (c *deliveryContext) own(key any) (value any, ok bool) {
	if key == (deliveryKey{}) {
		return c.d, true
	}
	return kafkactx.Value(c.d, key)
}

// AfterFunc lets package context register a derived context here, instead of starting a
// goroutine for it.
func (c *deliveryContext) AfterFunc(f func()) (stop func() bool) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		go f()
		return func() bool { return false }
	}
	if c.after == nil {
		c.after = map[*func()]struct{}{}
	}
	key := &f
	c.after[key] = struct{}{}
	c.mu.Unlock()
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, ok := c.after[key]
		delete(c.after, key)
		return ok
	}
}

func (c *deliveryContext) end(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	if c.done != nil {
		close(c.done)
	}
	after := c.after
	c.after = nil
	c.mu.Unlock()
	for f := range after {
		(*f)() // cancels a derived context: does not block
	}
}

// stopped returns ErrRevoked or ErrClosing if the context has ended because of it.
func (c *deliveryContext) stopped() error {
	if stop, ok := c.Err().(*consumer.Stop); ok {
		return stop
	}
	return nil
}

// asStopped turns the error of a handler that we stopped into a signal. It returns any other error
// unchanged.
func (c *deliveryContext) asStopped(err error) error {
	cause := c.stopped()
	if cause == nil || err == nil || IsSignal(err) {
		return err
	}
	return fmt.Errorf("%w: %w", cause, err)
}

// decodedContext is the context of a message to which the Unmarshaler gave one: that of the
// delivery, with the values and the deadline of the Unmarshaler's, and it ends with either.
type decodedContext struct {
	*deliveryContext
	decoded context.Context
}

func (c *decodedContext) Deadline() (time.Time, bool) { return c.decoded.Deadline() }

func (c *decodedContext) Value(key any) any {
	if v, ok := c.own(key); ok {
		return v
	}
	if v := c.decoded.Value(key); v != nil {
		return v
	}
	return c.deliveryContext.Value(key)
}

// adopt gives a message the context of its delivery.
func (c *deliveryContext) adopt(msg *message.Message) error {
	if decoded := msg.Context(); decoded != context.Background() {
		return c.join(msg, decoded)
	}
	msg.SetContext(c)
	return nil
}

// join gives a message the context of its delivery and the one that the Unmarshaler gave it. Of
// one that has ended already, as the Unmarshaler's own may have when it returns, only the values
// are kept.
func (c *deliveryContext) join(msg *message.Message, decoded context.Context) error {
	return guard("the context of the unmarshaler's message", func() {
		if decoded.Err() != nil {
			decoded = context.WithoutCancel(decoded)
		}
		if decoded.Done() != nil {
			stop := context.AfterFunc(decoded, func() {
				err := context.Canceled
				_ = guard("the context of the unmarshaler's message", func() { err = decoded.Err() }, nil)
				c.end(err)
			})
			c.AfterFunc(func() { stop() })
		}
		msg.SetContext(&decodedContext{c, decoded})
	}, nil)
}
