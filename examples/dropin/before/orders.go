// Package orders is an application before and after it moved over: [Run] is the same in both but for three lines.
package orders

import (
	"context"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
)

// Run hands the records of the topic to the handler until the context ends.
func Run(ctx context.Context, brokers []string, group, topic string, handler message.NoPublishHandlerFunc,
	logger watermill.LoggerAdapter,
) error {
	saramaConfig := kafka.DefaultSaramaSubscriberConfig()
	saramaConfig.Consumer.Offsets.Initial = sarama.OffsetOldest
	config := kafka.SubscriberConfig{
		Brokers:               brokers,
		ConsumerGroup:         group,
		OverwriteSaramaConfig: saramaConfig,
	}
	subscriber, err := kafka.NewSubscriber(config, logger)
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return err
	}
	router.AddConsumerHandler("orders", topic, subscriber, handler)
	return router.Run(ctx)
}
