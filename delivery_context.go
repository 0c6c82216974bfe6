package ackpolicy

import (
	"sync"
	"time"

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
	if key == (deliveryKey{}) {
		return c.d
	}
	if v, ok := kafkactx.Value(c.d, key); ok {
		return v
	}
	return c.d.kafka.Context().Value(key)
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
