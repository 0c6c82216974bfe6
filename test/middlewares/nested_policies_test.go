package middlewares_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Where two of our middlewares wrap one handler, the inner one decides.
func TestInnerPolicyCounts(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	s := testkit.NewService(t)
	s.Router.AddMiddleware(ackpolicy.Ack.Middleware)
	h := s.Router.AddConsumerHandler("handler", topic, testkit.NewSubscriber(t, testkit.Config(group), s.Log), s.Recorded(func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 && d.Attempt() == 1 {
			return testkit.ErrBoom
		}
		return nil
	}))
	h.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.Start(t)
	testkit.WaitCommitted(t, group, topic, 0, 2)
	s.Stop()
	s.Want(t, "0#1", "0#2", "1#1")
}

func TestInnerPolicyCountsOnOtherSubscribers(t *testing.T) {
	t.Parallel()
	ps := gochannel.NewGoChannel(gochannel.Config{}, nil)
	s := testkit.NewService(t)
	s.Router.AddMiddleware(ackpolicy.RejectOnError.Middleware)
	handled := make(chan struct{}, 10)
	h := s.Router.AddConsumerHandler("handler", "t", ps, func(*message.Message) error {
		handled <- struct{}{}
		if len(handled) == 1 {
			return testkit.ErrBoom
		}
		return nil
	})
	h.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.Start(t)
	testkit.Check(t, ps.Publish("t", message.NewMessage("1", nil)))
	testkit.Eventually(t, "the second delivery", func() bool { return len(handled) == 2 })
	s.Stop()
}

// An outer AckFirst leaves an inner policy nothing to decide: the log says so.
func TestOuterAckFirstIsTold(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	s := testkit.NewService(t)
	s.Router.AddMiddleware(ackpolicy.Middleware{}.Middleware)
	h := s.Router.AddConsumerHandler("handler", topic, testkit.NewSubscriber(t, testkit.Config(group), s.Log),
		s.Recorded(testkit.Succeed))
	h.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.Start(t)
	s.Wait(t, 3)
	s.Stop()
	if lines := testkit.Containing(s.Log.At("error"), "has no effect"); len(lines) != 1 {
		t.Errorf("reported %d times: %v", len(lines), lines)
	}
}

// Under AckFirst a handler does not run where its ack was refused: the record has
// another owner by now.
func TestAckFirstRefused(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	var ran atomic.Int32
	came := make(chan *ackpolicy.Delivery, 1)
	failed := make(chan error, 1)
	slow := func(h message.HandlerFunc) message.HandlerFunc { // as a throttle might be
		return func(msg *message.Message) ([]*message.Message, error) {
			d, _ := ackpolicy.FromMessage(msg)
			came <- d
			<-msg.Context().Done()
			produced, err := h(msg)
			failed <- err
			return produced, err
		}
	}
	s := testkit.Consume(t, testkit.Config(group, testkit.DrainTimeout(100*time.Millisecond)), topic, func(*message.Message, *ackpolicy.Delivery) error {
		ran.Add(1)
		return nil
	}, slow, ackpolicy.AckFirst.Middleware)
	d := testkit.Await(t, "the message", came)
	s.Stop()
	if err := testkit.Await(t, "the middleware's result", failed); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("got %v", err)
	}
	if ran.Load() != 0 || d.Status() != ackpolicy.Revoked {
		t.Errorf("the handler ran %d times, status %v", ran.Load(), d.Status())
	}
	testkit.WantCommitted(t, group, topic, 0, 0)
}
