package subscriber_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"

	"github.com/IBM/sarama"
	"github.com/xdg-go/scram"
)

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
