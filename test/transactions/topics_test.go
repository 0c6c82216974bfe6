package transactions_test

import (
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A topic for which no offset is accepted, such as one that a pattern matches and the user may only write to, does not
// hold the transactions of others.
func TestTopicWithoutTheRight(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewSecure(t)
	group, prefix := brokertest.Group(t), brokertest.Topic(t)
	allowed, forbidden, out := prefix+".a", prefix+".b", prefix+"-out"
	for _, topic := range []string{allowed, forbidden, out} {
		testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, 1))
	}
	for _, right := range []struct {
		resource  sarama.AclResourceType
		name      string
		operation sarama.AclOperation
	}{
		{sarama.AclResourceTopic, allowed, sarama.AclOperationRead},
		{sarama.AclResourceTopic, forbidden, sarama.AclOperationWrite},
		{sarama.AclResourceTopic, out, sarama.AclOperationWrite},
		{sarama.AclResourceGroup, group, sarama.AclOperationRead},
		{sarama.AclResourceTransactionalID, "*", sarama.AclOperationWrite},
		{sarama.AclResourceTransactionalID, "*", sarama.AclOperationDescribe},
	} {
		testkit.Check(t, broker.Allow(right.resource, right.name, right.operation))
	}
	for _, topic := range []string{allowed, forbidden} {
		_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(3)...)
		testkit.Check(t, err)
	}
	cfg := testkit.Config(group, testkit.DrainTimeout(testkit.Patience/10))
	cfg.Kafka.Brokers = broker.Addrs()
	broker.Use(cfg.Kafka.OverwriteSaramaConfig, sarama.SASLTypePlaintext, brokertest.SecureUser, brokertest.SecurePassword)
	cfg.Transactions = &ackpolicy.Transactions{}
	s := testkit.NewService(t)
	sub := testkit.NewSubscriber(t, cfg, s.Log)
	pub, err := sub.Publisher(kafka.PublisherConfig{})
	testkit.Check(t, err)
	s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.Router.AddHandler("copy", prefix+".*", sub, out, pub, func(msg *message.Message) ([]*message.Message, error) {
		return message.Messages{message.NewMessage(watermill.NewUUID(), msg.Payload)}, nil
	})
	s.Start(t)
	testkit.Eventually(t, "the output of the topic that may be read", func() bool {
		stored, err := brokertest.Committed(broker.Addrs(), group, allowed, 0)
		return err == nil && stored == 3
	})
	testkit.Eventually(t, "a line that names the other", func() bool {
		return len(testkit.Containing(s.Log.At("error"), "topic="+forbidden)) > 0
	})
	s.Stop()
}
