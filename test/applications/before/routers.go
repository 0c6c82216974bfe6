package before

import (
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/test/applications/shop"
)

// ConstructorPerHandler has handlers of a Router, and a function that makes a subscriber for each.
func ConstructorPerHandler(s shop.Shop) (shop.Service, error) {
	newSubscriber := func(handler string) (message.Subscriber, error) {
		return kafka.NewSubscriber(s.Of(handler), s.Logger)
	}
	router, err := message.NewRouter(message.RouterConfig{}, s.Logger)
	if err != nil {
		return nil, err
	}
	for _, handler := range []string{"bill", "ship"} {
		subscriber, err := newSubscriber(handler)
		if err != nil {
			return nil, err
		}
		router.AddConsumerHandler(handler, s.Topic, subscriber, s.HandleMessageAs(handler))
	}
	return router, nil
}

// SharedRouter has a Router of a constructor that adds a PoisonQueue.
func SharedRouter(s shop.Shop) (shop.Service, error) {
	router, err := shop.NewRouter(s.Publisher, s.Logger)
	if err != nil {
		return nil, err
	}
	subscriber, err := kafka.NewSubscriber(s.Kafka, s.Logger)
	if err != nil {
		return nil, err
	}
	router.AddConsumerHandler("place", s.Topic, subscriber, s.HandleMessageAs("place"))
	return router, nil
}

// NoGroup has a handler that reads everything, and stores no position.
func NoGroup(s shop.Shop) (shop.Service, error) {
	router, err := message.NewRouter(message.RouterConfig{}, s.Logger)
	if err != nil {
		return nil, err
	}
	s.Kafka.ConsumerGroup = ""
	subscriber, err := kafka.NewSubscriber(s.Kafka, s.Logger)
	if err != nil {
		return nil, err
	}
	router.AddConsumerHandler("cache", s.Topic, subscriber, s.HandleMessageAs("cache"))
	return router, nil
}

// Loop has no Router.
func Loop(s shop.Shop) (shop.Service, error) {
	subscriber, err := kafka.NewSubscriber(s.Kafka, s.Logger)
	if err != nil {
		return nil, err
	}
	return shop.NewLoop(subscriber, s.Topic, s.HandleMessageAs("loop")), nil
}
