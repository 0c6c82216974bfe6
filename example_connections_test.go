package ackpolicy_test

import (
	"github.com/ThreeDotsLabs/watermill"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// connections are those of the whole process.
var connections ackpolicy.Connections

// newSubscriber returns a Subscriber that shares its connections with all others.
func newSubscriber(config ackpolicy.SubscriberConfig, logger watermill.LoggerAdapter) (*ackpolicy.Subscriber, error) {
	config.Connections = &connections
	return ackpolicy.NewSubscriber(config, logger)
}

// Subscribers of one process can share their connections and limits, as those of the same Subscriber do.
func ExampleConnections() {
	for _, group := range []string{"billing", "shipping"} {
		config := ackpolicy.SubscriberConfig{}
		config.Kafka.Brokers = []string{"localhost:9092"}
		config.Kafka.ConsumerGroup = group
		if _, err := newSubscriber(config, nil); err != nil {
			panic(err)
		}
	}
}
