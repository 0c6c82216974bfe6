package ackpolicy_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// On other subscribers Manual waits for the message to be settled, as long as the message lives: not only as long as the
// context that a Timeout inside of it has given the handler.
func TestForeignManualOutlivesTimeout(t *testing.T) {
	t.Parallel()
	for name, open := range foreignPubSubs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := &failingPublisher{}
			mw := func(h message.HandlerFunc) message.HandlerFunc {
				return ackpolicy.Manual.Middleware(middleware.Timeout(time.Minute)(h))
			}
			s, call := foreignService(t, open, out, mw,
				func(*ackpolicy.Delivery) ([]*message.Message, error) { return output(), nil })
			await(t, "the handler's end", call.returned)
			if !call.delivery.Ack() {
				t.Errorf("not acked: %v", call.delivery.Status())
			}
			await(t, "the middleware's end", call.reached)
			if got := settled(t, call.msg); got != acked || call.err != nil {
				t.Errorf("%v, %v", got, call.err)
			}
			s.stop()
			if out.published != 1 {
				t.Errorf("published %d messages", out.published)
			}
		})
	}
}

// A Retry outside comes too late there: the first failure settles.
func TestForeignRetryOutside(t *testing.T) {
	t.Parallel()
	retry := middleware.Retry{MaxRetries: 1, InitialInterval: time.Millisecond}.Middleware
	for _, c := range []struct {
		name     string
		mw       message.HandlerMiddleware
		rejected bool
	}{
		{"inside", func(h message.HandlerFunc) message.HandlerFunc { return ackpolicy.RejectOnError.Middleware(retry(h)) }, false},
		{"outside", func(h message.HandlerFunc) message.HandlerFunc { return retry(ackpolicy.RejectOnError.Middleware(h)) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			calls := 0
			msg := message.NewMessage("id", nil)
			_, err := c.mw(func(msg *message.Message) ([]*message.Message, error) {
				if calls++; calls == 1 {
					return nil, errBoom
				}
				d, _ := ackpolicy.FromMessage(msg)
				if got := d.Status() == ackpolicy.Rejected; got != c.rejected {
					t.Errorf("the second try finds it %v", d.Status())
				}
				return nil, nil
			})(msg)
			if err != nil || calls != 2 {
				t.Errorf("%d calls, %v", calls, err)
			}
		})
	}
}
