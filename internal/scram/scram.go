// Package scram is SASL/SCRAM as sarama wants it: for the command and the tests. Users
// of the library bring their own client.
package scram

import (
	"github.com/IBM/sarama"
	"github.com/xdg-go/scram"
)

// Use sets the mechanism, SCRAM-SHA-256 or SCRAM-SHA-512, and its client.
func Use(cfg *sarama.Config, mechanism sarama.SASLMechanism) {
	hash := scram.SHA256
	if mechanism == sarama.SASLTypeSCRAMSHA512 {
		hash = scram.SHA512
	}
	cfg.Net.SASL.Mechanism = mechanism
	cfg.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return &client{hash: hash} }
}

type client struct {
	hash scram.HashGeneratorFcn
	*scram.ClientConversation
}

// Begin implements sarama.SCRAMClient.
func (c *client) Begin(user, password, authzID string) error {
	client, err := c.hash.NewClient(user, password, authzID)
	if err != nil {
		return err
	}
	c.ClientConversation = client.NewConversation()
	return nil
}
