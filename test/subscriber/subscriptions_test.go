package subscriber_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Subscribing again after a context ended, and after a Close.
func TestSubscribeAgain(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	sub := testkit.NewSubscriber(t, testkit.Config(group), testkit.NewLog(t))
	for offset := range int64(2) {
		ctx, cancel := context.WithCancel(context.Background())
		messages, err := sub.Subscribe(ctx, topic)
		testkit.Check(t, err)
		msg := testkit.Await(t, "a message", messages)
		if d, _ := ackpolicy.FromMessage(msg); d.Offset() != offset {
			t.Fatalf("offset %d, want %d", d.Offset(), offset)
		}
		msg.Ack()
		testkit.Await(t, "the end of the message", msg.Context().Done())
		cancel()
		for msg := range messages { // handed out before the end of the context was noticed
			msg.Nack()
		}
		testkit.WantCommitted(t, group, topic, 0, offset+1)
	}
	testkit.Check(t, sub.Close())
	testkit.Check(t, sub.Close())
	if _, err := sub.Subscribe(context.Background(), topic); err == nil {
		t.Error("Subscribe after Close: no error")
	}
}

// Three topics of one subscriber: one ends, the others continue.
func TestManySubscriptions(t *testing.T) {
	t.Parallel()
	group := brokertest.Group(t)
	sub := testkit.NewSubscriber(t, testkit.Config(group), testkit.NewLog(t))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	first, second := testkit.NewTopic(t, 1, testkit.Numbered(1)...), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	messages, err := sub.Subscribe(ctx, first)
	testkit.Check(t, err)
	others, err := sub.Subscribe(context.Background(), second)
	testkit.Check(t, err)
	testkit.Await(t, "a message", messages).Ack()
	cancel()
	if _, open := <-messages; open {
		t.Error("a message after the end of the context")
	}
	for range 8 { // there is a connection: whether it is used would be a matter of luck
		if _, err := sub.Subscribe(ctx, first); !errors.Is(err, context.Canceled) {
			t.Error("Subscribe with a context that has ended:", err)
		}
	}
	testkit.Await(t, "a message of the other topic", others).Ack()
	testkit.Produce(t, second, 0, testkit.Numbered(1)...)
	testkit.Await(t, "one more", others).Ack()
	testkit.Check(t, sub.Close())
	testkit.WantCommitted(t, group, first, 0, 1)
	testkit.WantCommitted(t, group, second, 0, 2)
}

// A subscription loads the whole cluster's metadata once, not once per connection: with
// thousands of topics each time is a second and a hundred megabytes.
func TestMetadataIsLoadedOnce(t *testing.T) {
	t.Parallel()
	for name, group := range map[string]string{"group": brokertest.Group(t), "no group": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t)
			topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(3)...)
			var whole atomic.Int32
			broker.Kfake().ControlKey(int16(kmsg.Metadata), func(request kmsg.Request) (kmsg.Response, error, bool) {
				broker.Kfake().KeepControl()
				if request.(*kmsg.MetadataRequest).Topics == nil {
					whole.Add(1)
				}
				return nil, nil, false
			})
			s := testkit.Consume(t, testkit.Config(group, at), topic, testkit.Succeed,
				ackpolicy.NackOnError.Middleware)
			s.Wait(t, 3)
			s.Stop()
			if n := whole.Load(); n != 1 {
				t.Errorf("the metadata of all topics were asked for %d times, want once", n)
			}
		})
	}
}
