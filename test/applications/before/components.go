package before

import (
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/components/fanin"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/components/requeuer"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/test/applications/shop"
)

// FanIn moves the messages of several topics to one. Its Router is its own.
func FanIn(s shop.Shop) (shop.Service, error) {
	subscriber, err := kafka.NewSubscriber(s.Kafka, s.Logger)
	if err != nil {
		return nil, err
	}
	return fanin.NewFanIn(subscriber, s.Publisher, fanin.Config{SourceTopics: []string{s.Topic}, TargetTopic: "all"}, s.Logger)
}

// Forwarder publishes what comes in envelopes.
func Forwarder(s shop.Shop) (shop.Service, error) {
	subscriber, err := kafka.NewSubscriber(s.Kafka, s.Logger)
	if err != nil {
		return nil, err
	}
	return forwarder.NewForwarder(subscriber, s.Publisher, s.Logger, forwarder.Config{ForwarderTopic: s.Topic})
}

// Requeuer moves messages back to where they came from.
func Requeuer(s shop.Shop) (shop.Service, error) {
	subscriber, err := kafka.NewSubscriber(s.Kafka, s.Logger)
	if err != nil {
		return nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, s.Logger)
	if err != nil {
		return nil, err
	}
	_, err = requeuer.NewRequeuer(requeuer.Config{
		Subscriber: subscriber, SubscribeTopic: s.Topic, Publisher: s.Publisher, Router: router,
		GeneratePublishTopic: func(requeuer.GeneratePublishTopicParams) (string, error) { return "orders", nil },
	}, s.Logger)
	return router, err
}
