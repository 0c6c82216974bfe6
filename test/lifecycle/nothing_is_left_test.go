package lifecycle_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A hundred subscriptions come and go with traffic, and end in all the ways there are: no goroutine and no connection is
// left. Not parallel, so that what others run is not taken for a leak.
func TestNothingIsLeft(t *testing.T) {
	const rounds, partitions = 100, 2
	before := goleak.IgnoreCurrent()
	broker, err := brokertest.Start()
	testkit.Check(t, err)
	addrs, topic, group := broker.Addrs(), brokertest.Topic(t), brokertest.Group(t)
	testkit.Check(t, brokertest.CreateTopic(addrs, topic, partitions))

	var network brokertest.Network
	var many *ackpolicy.Subscriber // of many subscriptions
	cfg := testkit.Config(group, testkit.DrainTimeout(50*time.Millisecond))
	cfg.Kafka.Brokers = addrs
	network.Use(cfg.Kafka.OverwriteSaramaConfig)
	for round := range rounds {
		for p := range int32(partitions) {
			_, err := brokertest.Produce(addrs, topic, p, testkit.Numbered(20)...)
			testkit.Check(t, err)
		}
		c := cfg
		if round%4 == 3 {
			c.Kafka.ConsumerGroup = ""
		}
		if many == nil || round%10 == 0 || round%4 == 3 {
			if many != nil {
				testkit.Check(t, many.Close())
			}
			many, err = ackpolicy.NewSubscriber(c, testkit.NewLog(t))
			testkit.Check(t, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		messages, err := many.Subscribe(ctx, topic)
		testkit.Check(t, err)
		for range 5 {
			testkit.Await(t, fmt.Sprintf("a message in round %d", round), messages).Ack()
		}
		switch round % 3 {
		case 0: // with one that nobody acks or nacks
			testkit.Await(t, "a message", messages)
		case 1: // with one that is nacked
			testkit.Await(t, "a message", messages).Nack()
		}
		if round%2 == 0 {
			cancel()
		} else {
			testkit.Check(t, many.Close())
			many = nil
		}
		for range messages { // until it is closed
		}
		cancel()
		if many == nil && network.OpenConns() > 0 {
			t.Fatalf("round %d: %d connections after Close", round, network.OpenConns())
		}
	}
	if many != nil {
		testkit.Check(t, many.Close())
	}
	if n := network.OpenConns(); n > 0 {
		t.Errorf("%d connections left", n)
	}
	broker.Close()
	goleak.VerifyNone(t, before, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}
