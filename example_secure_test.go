package ackpolicy_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/xdg-go/scram"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// The code that docs/operations.md shows is in here: TestPageShowsExamples sees to it. TestSASLAndTLS runs a copy.

// secure connects as the user, with SCRAM over TLS, to brokers whose certificates are of the CA in the file.
func secure(cfg *sarama.Config, caFile, user, password string) error {
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool() // leave RootCAs out if the CA is one that the system trusts
	if !roots.AppendCertsFromPEM(ca) {
		return errors.New(caFile + " holds no certificate")
	}
	cfg.Net.TLS.Enable = true
	cfg.Net.TLS.Config = &tls.Config{RootCAs: roots}
	cfg.Net.SASL.Enable = true
	cfg.Net.SASL.User, cfg.Net.SASL.Password = user, password
	cfg.Net.SASL.Mechanism = sarama.SASLTypeSCRAMSHA512 // with SASLTypePlaintext the next line is not needed
	cfg.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return &scramClient{} }
	return nil
}

// scramClient is github.com/xdg-go/scram as sarama wants it.
type scramClient struct{ *scram.ClientConversation }

func (c *scramClient) Begin(user, password, authzID string) error {
	client, err := scram.SHA512.NewClient(user, password, authzID)
	if err == nil {
		c.ClientConversation = client.NewConversation()
	}
	return err
}

func Example_secure() {
	cfg := kafka.DefaultSaramaSubscriberConfig()
	if err := secure(cfg, "ca.pem", "app", os.Getenv("KAFKA_PASSWORD")); err != nil {
		panic(err)
	}
	config := ackpolicy.SubscriberConfig{Kafka: kafka.SubscriberConfig{
		Brokers:               []string{"kafka-1:9093", "kafka-2:9093"},
		ConsumerGroup:         "billing",
		Unmarshaler:           kafka.DefaultMarshaler{},
		OverwriteSaramaConfig: cfg,
	}}
	subscriber, err := ackpolicy.NewSubscriber(config, watermill.NewSlogLogger(nil))
	if err != nil {
		panic(err)
	}
	defer subscriber.Close()
}
