package ackpolicy_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Without the middleware the subscriber keeps Watermill's own contract, and a Delivery's verbs win over it.
func TestPlainSubscribeLoop(t *testing.T) {
	t.Parallel()
	steps := map[string]func(msg *message.Message, d *ackpolicy.Delivery){
		"0#1": func(msg *message.Message, _ *ackpolicy.Delivery) { msg.Ack() },
		"1#1": func(msg *message.Message, _ *ackpolicy.Delivery) { msg.Nack() },
		"2#1": func(msg *message.Message, d *ackpolicy.Delivery) { d.Nack(); msg.Ack() },
		"3#1": func(msg *message.Message, d *ackpolicy.Delivery) { d.Ack(); msg.Nack() },
		"4#1": func(msg *message.Message, d *ackpolicy.Delivery) { d.Reject(errBoom); msg.Ack() },
	}
	want := []string{"0#1", "1#1", "1#2", "2#1", "2#2", "3#1", "4#1"}
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(5)...)
	sub := newSubscriber(t, config(group), newLog(t))
	messages, err := sub.Subscribe(context.Background(), topic)
	check(t, err)

	var j journal
	for range want {
		msg := await(t, "a message", messages)
		d, ok := ackpolicy.FromMessage(msg)
		if !ok {
			t.Fatal("a message without a Delivery")
		}
		j.add(d)
		if step := steps[name(d)]; step != nil {
			step(msg, d)
		} else {
			msg.Ack()
		}
		await(t, "the end of a finished message's context", msg.Context().Done())
	}
	j.want(t, want...)
	check(t, sub.Close())
	wantCommitted(t, group, topic, 0, 5)
	if _, open := <-messages; open {
		t.Error("a message after Close")
	}
	if status := j.all()[6].Status(); status != ackpolicy.Rejected {
		t.Errorf("status of the rejected one: %v", status)
	}
}

func TestRouterWithoutPolicy(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	s := consume(t, config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if name(d) == "0#1" {
			return errBoom
		}
		return nil
	})
	s.journal.wait(t, 3)
	s.stop()
	s.journal.want(t, "0#1", "0#2", "1#1")
	wantCommitted(t, group, topic, 0, 2)
}

// Subscribing again after a context ended, and after a Close.
func TestSubscribeAgain(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	sub := newSubscriber(t, config(group), newLog(t))
	for offset := range int64(2) {
		ctx, cancel := context.WithCancel(context.Background())
		messages, err := sub.Subscribe(ctx, topic)
		check(t, err)
		msg := await(t, "a message", messages)
		if d, _ := ackpolicy.FromMessage(msg); d.Offset() != offset {
			t.Fatalf("offset %d, want %d", d.Offset(), offset)
		}
		msg.Ack()
		await(t, "the end of the message", msg.Context().Done())
		cancel()
		for msg := range messages { // handed out before the end of the context was noticed
			msg.Nack()
		}
		wantCommitted(t, group, topic, 0, offset+1)
	}
	check(t, sub.Close())
	check(t, sub.Close())
	if _, err := sub.Subscribe(context.Background(), topic); err == nil {
		t.Error("Subscribe after Close: no error")
	}
}

// Three topics of one subscriber: one ends, the others go on.
func TestManySubscriptions(t *testing.T) {
	t.Parallel()
	group := brokertest.Group(t)
	sub := newSubscriber(t, config(group), newLog(t))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	first, second := newTopic(t, 1, numbered(1)...), newTopic(t, 1, numbered(1)...)
	messages, err := sub.Subscribe(ctx, first)
	check(t, err)
	others, err := sub.Subscribe(context.Background(), second)
	check(t, err)
	await(t, "a message", messages).Ack()
	cancel()
	if _, open := <-messages; open {
		t.Error("a message after the end of the context")
	}
	await(t, "a message of the other topic", others).Ack()
	produce(t, second, 0, numbered(1)...)
	await(t, "one more", others).Ack()
	check(t, sub.Close())
	wantCommitted(t, group, first, 0, 1)
	wantCommitted(t, group, second, 0, 2)
}
