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

// deliveryContext is the context of a message: the Delivery itself, so it costs no
// allocation, and its channel is created when Done is first called. It ends when the
// delivery is finished, or with ErrRevoked or ErrClosing when we stop the handler. These
// are then its Err, the Err of contexts derived from it, and their context.Cause, so that
// IsSignal recognizes what a handler returns. By errors.Is they are context.Canceled.
type deliveryContext Delivery

func (c *deliveryContext) Deadline() (time.Time, bool)           { return c.ending.Deadline() }
func (c *deliveryContext) Done() <-chan struct{}                 { return c.ending.Done() }
func (c *deliveryContext) Err() error                            { return c.ending.Err() }
func (c *deliveryContext) AfterFunc(f func()) (stop func() bool) { return c.ending.AfterFunc(f) }

// Value returns the delivery, the values of watermill-kafka's getters, and those of the
// context that was passed to Subscribe.
func (c *deliveryContext) Value(key any) any {
	if v, ok := c.ownValue(key); ok {
		return v
	}
	return c.kafka.Context().Value(key)
}

func (c *deliveryContext) ownValue(key any) (value any, ok bool) {
	if key == (deliveryKey{}) {
		return (*Delivery)(c), true
	}
	return kafkactx.Value((*Delivery)(c), key)
}

// ending is the end of a context. Its methods are those of context.Context.
type ending struct {
	mu  sync.Mutex // guards what follows, and most of the Delivery; no other lock is taken under it
	err error      // nil while it has not ended
	few *few       // nil if there is none
}

// few is what few deliveries need.
type few struct {
	done     chan struct{}
	after    map[*func()]struct{}
	returned chan struct{} // closed by the handler's end, or by Cancel: Run waits for that
	err      error         // of the plan
	foreign  *foreign      // set if Delivery.sub is nil
}

// rare returns few, for a change. The caller holds mu.
func (e *ending) rare() *few {
	if e.few == nil {
		e.few = &few{}
	}
	return e.few
}

func (e *ending) Deadline() (time.Time, bool) { return time.Time{}, false }

func (e *ending) Done() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	few := e.rare()
	if few.done == nil {
		few.done = make(chan struct{})
		if e.err != nil {
			close(few.done)
		}
	}
	return few.done
}

func (e *ending) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// AfterFunc lets package context register a derived context here, instead of starting a
// goroutine for it.
func (e *ending) AfterFunc(f func()) (stop func() bool) {
	e.mu.Lock()
	if e.err != nil {
		e.mu.Unlock()
		go f()
		return func() bool { return false }
	}
	few := e.rare()
	if few.after == nil {
		few.after = map[*func()]struct{}{}
	}
	key := &f
	few.after[key] = struct{}{}
	e.mu.Unlock()
	return func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		_, ok := few.after[key]
		delete(few.after, key)
		return ok
	}
}

func (e *ending) end(err error) {
	e.mu.Lock()
	if e.err != nil {
		e.mu.Unlock()
		return
	}
	e.err = err
	var after map[*func()]struct{}
	if few := e.few; few != nil {
		if few.done != nil {
			close(few.done)
		}
		after, few.after = few.after, nil
	}
	e.mu.Unlock()
	for f := range after {
		(*f)() // cancels a derived context: does not block
	}
}

// stopped returns ErrRevoked or ErrClosing if the context has ended because of it.
func (e *ending) stopped() error {
	if stop, ok := e.Err().(*consumer.Stop); ok {
		return stop
	}
	return nil
}

// asStopped turns the error of a handler that we stopped into a signal. It returns any other error
// unchanged.
func (e *ending) asStopped(err error) error {
	cause := e.stopped()
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
	if v, ok := c.ownValue(key); ok {
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
				c.ending.end(err)
			})
			c.AfterFunc(func() { stop() })
		}
		msg.SetContext(&decodedContext{c, decoded})
	}, nil)
}
