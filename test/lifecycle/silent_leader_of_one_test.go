package lifecycle_test

import (
	"context"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Two subscriptions of a Subscriber, one of which reads from a leader that is silent: the other one commits meanwhile,
// and continues when the first one has ended.
func TestSilentLeaderOfOneSubscription(t *testing.T) {
	t.Parallel()
	l := newSilentLeader(t, testkit.Numbered(1)...)
	healthy := elsewhere(t, l)
	sub := testkit.NewSubscriber(t, testkit.Config(l.group, l.reached, testkit.DrainTimeout(300*time.Millisecond)), testkit.NewLog(t))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	messages, err := sub.Subscribe(ctx, l.topic)
	testkit.Check(t, err)
	others, err := sub.Subscribe(context.Background(), healthy)
	testkit.Check(t, err)
	testkit.Await(t, "a message", messages).Ack()
	first := testkit.Await(t, "a message of the other topic", others)
	l.leader.Delay(time.Hour)
	confirm(t, first)
	cancel()
	began := time.Now()
	wantClosed(t, func() {
		for range messages { //nolint:revive // to its end
		}
	}, 300*time.Millisecond)
	t.Logf("the subscription ended after %v", time.Since(began).Round(time.Millisecond))
	// The group rebalances, since a member has left. To join again takes metadata, perhaps of the silent broker.
	l.leader.Heal()
	_, err = brokertest.Produce(l.broker.Addrs(), healthy, 0, testkit.Numbered(1)...)
	testkit.Check(t, err)
	confirm(t, testkit.Await(t, "another message", others))
}

// confirm acks a message and waits for its commit.
func confirm(t *testing.T, msg *message.Message) {
	t.Helper()
	d, _ := ackpolicy.FromMessage(msg)
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	if err := d.AckSync(ctx); err != nil {
		t.Fatalf("offset %d: %v", d.Offset(), err)
	}
	msg.Ack()
}

// elsewhere makes a topic with a record that another broker leads.
func elsewhere(t *testing.T, l *silentLeader) string {
	t.Helper()
	client, err := sarama.NewClient(l.broker.Addrs(), nil)
	testkit.Check(t, err)
	defer client.Close()
	silent, err := client.Leader(l.topic, 0)
	testkit.Check(t, err)
	for {
		topic, _ := testkit.FakeTopic(t, l.broker, testkit.Numbered(1)...)
		leader, err := client.Leader(topic, 0)
		testkit.Check(t, err)
		if leader.ID() != silent.ID() {
			return topic
		}
	}
}
