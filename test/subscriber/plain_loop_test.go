package subscriber_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Without the middleware the subscriber keeps Watermill's own contract, and a Delivery's verbs win over it.
func TestPlainSubscribeLoop(t *testing.T) {
	t.Parallel()
	steps := map[string]func(msg *message.Message, d *ackpolicy.Delivery){
		"0#1": func(msg *message.Message, _ *ackpolicy.Delivery) { msg.Ack() },
		"1#1": func(msg *message.Message, _ *ackpolicy.Delivery) { msg.Nack() },
		"2#1": func(msg *message.Message, d *ackpolicy.Delivery) { d.Nack(); msg.Ack() },
		"3#1": func(msg *message.Message, d *ackpolicy.Delivery) { d.Ack(); msg.Nack() },
		"4#1": func(msg *message.Message, d *ackpolicy.Delivery) { d.Reject(testkit.ErrBoom); msg.Ack() },
	}
	want := []string{"0#1", "1#1", "1#2", "2#1", "2#2", "3#1", "4#1"}
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(5)...)
	sub := testkit.NewSubscriber(t, testkit.Config(group), testkit.NewLog(t))
	messages, err := sub.Subscribe(context.Background(), topic)
	testkit.Check(t, err)

	var j testkit.Journal
	for range want {
		msg := testkit.Await(t, "a message", messages)
		d, ok := ackpolicy.FromMessage(msg)
		if !ok {
			t.Fatal("a message without a Delivery")
		}
		j.Add(d)
		if step := steps[testkit.Name(d)]; step != nil {
			step(msg, d)
		} else {
			msg.Ack()
		}
		testkit.Await(t, "the end of a finished message's context", msg.Context().Done())
	}
	j.Want(t, want...)
	testkit.Check(t, sub.Close())
	testkit.WantCommitted(t, group, topic, 0, 5)
	if _, open := <-messages; open {
		t.Error("a message after Close")
	}
	if status := j.All()[6].Status(); status != ackpolicy.Rejected {
		t.Errorf("status of the rejected one: %v", status)
	}
}

func TestRouterWithoutPolicy(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	s := testkit.Consume(t, testkit.Config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if testkit.Name(d) == "0#1" {
			return testkit.ErrBoom
		}
		return nil
	})
	s.Wait(t, 3)
	s.Stop()
	s.Want(t, "0#1", "0#2", "1#1")
	testkit.WantCommitted(t, group, topic, 0, 2)
}
