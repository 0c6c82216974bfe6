package ackpolicy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
)

// handlerSettings are what a Middleware has in place of the Subscriber's settings for failing
// records, within one subscription. Zero values are the Subscriber's.
type handlerSettings struct {
	by            *guarded
	outer         uint8 // the settings of the middleware around it, whose values it has where its own are zero
	maxDeliveries int
	maxAge        time.Duration
	backoff       func(attempt int, err error) time.Duration
	deadLetter    *lateLetters
}

// A delivery has the number of its settings: their index in subscription.settings and 1, or one
// of these. Settings beyond mostSettings are not used.
const (
	noSettings          = 0 // those of its subscription's last handler
	subscribersSettings = 255
	mostSettings        = 254
)

// settingsOf returns the number of a middleware's settings.
func (s *subscription) settingsOf(m *guarded, outer uint8) uint8 {
	for {
		known := s.settings.Load()
		var all []*handlerSettings
		if known != nil {
			all = *known
		}
		if i := slices.IndexFunc(all, func(h *handlerSettings) bool { return h.by == m && h.outer == outer }); i >= 0 {
			return uint8(i + 1)
		}
		if len(all) == mostSettings {
			return subscribersSettings
		}
		var around handlerSettings
		if outer != noSettings && outer != subscribersSettings {
			around = *all[outer-1]
		}
		own := &handlerSettings{
			by: m, outer: outer, maxDeliveries: cmp.Or(m.MaxDeliveries, around.maxDeliveries), maxAge: cmp.Or(m.MaxAge, around.maxAge),
			backoff: m.Backoff, deadLetter: around.deadLetter,
		}
		if own.backoff == nil {
			own.backoff = around.backoff
		}
		if m.DeadLetter != nil && !s.detached {
			own.deadLetter = &lateLetters{sub: s, of: m.DeadLetter, turn: make(chan struct{}, 1)}
		}
		all = append(slices.Clip(all), own)
		if s.settings.CompareAndSwap(known, &all) {
			return uint8(len(all))
		}
	}
}

// handlerName returns the name of the last handler that ran under our middleware.
func (s *subscription) handlerName() string {
	if name := s.handler.Load(); name != nil {
		return *name
	}
	return ""
}

// handlerSettings returns those of the subscription's last handler that has some, or nil.
func (s *subscription) handlerSettings() *handlerSettings {
	if all := s.settings.Load(); all != nil {
		return (*all)[len(*all)-1]
	}
	return nil
}

// settings returns the settings of the middleware that the delivery has reached, or nil. One
// that has reached none (an outer middleware failed, somebody rejects the record by hand) has
// those of its subscription, and keeps them.
func (d *Delivery) settings() *handlerSettings {
	all := d.sub.settings.Load()
	if all == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.own == noSettings {
		d.own = subscribersSettings
		if d.entered == nil && (d.batch == nil || !d.batch.wrapped.Load()) {
			d.own = uint8(len(*all))
		}
	}
	if d.own == subscribersSettings {
		return nil
	}
	return (*all)[d.own-1]
}

// likeTheSubscriber makes the delivery one that no middleware has settings for.
func (d *Delivery) likeTheSubscriber() {
	d.mu.Lock()
	d.own = subscribersSettings
	d.mu.Unlock()
}

// maxDeliveries returns the limit under some settings, which may be nil; 0 means none.
func (s *subscription) maxDeliveries(own *handlerSettings) int {
	n := int(s.sub.maxDeliveries.Load())
	if own != nil {
		n = cmp.Or(n, own.maxDeliveries)
	}
	return max(0, cmp.Or(n, s.sub.config.MaxDeliveries))
}

func (s *subscription) maxAge(own *handlerSettings) time.Duration {
	if own != nil && own.maxAge != 0 {
		return max(0, own.maxAge)
	}
	return s.sub.config.MaxAge
}

// destination returns where the letters of records under some settings go, or nil.
func (s *subscription) destination(own *handlerSettings) DeadLetter {
	if own != nil && own.deadLetter != nil {
		return own.deadLetter
	}
	return s.deadLetter
}

// closeLetters closes what was opened for letters.
func (s *subscription) closeLetters() error {
	errs := []error{closeDeadLetter(s.deadLetter)}
	if all := s.settings.Load(); all != nil {
		for _, own := range *all {
			if own.deadLetter != nil { // perhaps another's, and closed already
				errs = append(errs, own.deadLetter.close())
			}
		}
	}
	return errors.Join(errs...)
}

// lateLetters is the DeadLetter of a Middleware. It is opened for the first letter: the
// subscription does not know of it before.
type lateLetters struct {
	sub *subscription
	of  DeadLetter

	turn   chan struct{} // a token for whoever uses what follows
	opened DeadLetter
	closed bool
}

// Send implements DeadLetter.
func (l *lateLetters) Send(ctx context.Context, record *sarama.ConsumerMessage, letter Letter) error {
	dead, err := l.open(ctx)
	if err != nil {
		return fmt.Errorf("cannot open Middleware.DeadLetter: %w", err)
	}
	return dead.Send(ctx, record, letter)
}

func (l *lateLetters) open(ctx context.Context) (DeadLetter, error) {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	switch {
	case l.closed:
		return nil, consumer.ErrClosing
	case l.opened != nil:
		return l.opened, nil
	}
	dead, err := l.sub.openDeadLetter(ctx, l.of)
	if err == nil {
		l.opened = dead
	}
	return dead, err
}

// close waits for an open call, whose context has ended.
func (l *lateLetters) close() error {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	if l.closed {
		return nil
	}
	l.closed = true
	return closeDeadLetter(l.opened)
}
