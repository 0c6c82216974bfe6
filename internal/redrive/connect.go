package redrive

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/scram"
)

const clientID = "ackpolicy-redrive"

// sessionTimeout is how long a redrive that was killed keeps others out.
var sessionTimeout = 10 * time.Second

// connection is how to reach Kafka. Files are PEM.
type connection struct {
	brokers           []string
	tls               bool
	caFile            string
	certFile, keyFile string
	sasl              string
	user              string
	passwordFile      string
	compression       sarama.CompressionCodec
}

// config is that of the one client that a redrive has. Its producer is transactional.
func (c *connection) config(transactionalID string) (*sarama.Config, error) {
	cfg := sarama.NewConfig()
	cfg.ClientID = clientID
	cfg.Version = sarama.V2_8_0_0
	cfg.Metadata.AllowAutoTopicCreation = false
	cfg.Metadata.Full = false // of the topics that are asked for, not of all
	// A broker that is restarted takes some seconds.
	cfg.Metadata.Retry.Max, cfg.Metadata.Retry.Backoff = 10, 200*time.Millisecond
	cfg.Producer.Retry.Max, cfg.Producer.Retry.Backoff = 60, 250*time.Millisecond
	cfg.Producer.Transaction.Retry.Max, cfg.Producer.Transaction.Retry.Backoff = 60, 250*time.Millisecond
	cfg.Producer.Idempotent = true
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Net.MaxOpenRequests = 1 // sarama wants it for an idempotent producer
	cfg.Producer.Transaction.ID = transactionalID
	cfg.Producer.Return.Successes = true
	cfg.Producer.Return.Errors = true
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	cfg.Producer.Compression = c.compression
	cfg.Producer.MaxMessageBytes = int(sarama.MaxRequestSize) - 1<<20 // how large a record may be is the broker's to say
	if err := c.secure(cfg); err != nil {
		return nil, err
	}
	return cfg, cfg.Validate()
}

func (c *connection) secure(cfg *sarama.Config) error {
	if c.tls || c.caFile != "" || c.certFile != "" || c.keyFile != "" {
		cfg.Net.TLS.Enable = true
		cfg.Net.TLS.Config = &tls.Config{MinVersion: tls.VersionTLS12}
		if c.caFile != "" {
			pem, err := os.ReadFile(c.caFile)
			if err != nil {
				return fmt.Errorf("-tls-ca: %w", err)
			}
			cfg.Net.TLS.Config.RootCAs = x509.NewCertPool()
			if !cfg.Net.TLS.Config.RootCAs.AppendCertsFromPEM(pem) {
				return fmt.Errorf("-tls-ca: %s holds no certificate", c.caFile)
			}
		}
		if c.certFile != "" || c.keyFile != "" {
			pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
			if err != nil {
				return fmt.Errorf("-tls-cert, -tls-key: %w", err)
			}
			cfg.Net.TLS.Config.Certificates = []tls.Certificate{pair}
		}
	}
	if c.sasl == "" {
		if c.user != "" || c.passwordFile != "" {
			return errors.New("-user and -password-file are for -sasl: want plain, scram-sha-256 or scram-sha-512")
		}
		return nil
	}
	cfg.Net.SASL.Enable = true
	cfg.Net.SASL.User = c.user
	switch c.sasl {
	case "plain":
		cfg.Net.SASL.Mechanism = sarama.SASLTypePlaintext
	case "scram-sha-256":
		scram.Use(cfg, sarama.SASLTypeSCRAMSHA256)
	case "scram-sha-512":
		scram.Use(cfg, sarama.SASLTypeSCRAMSHA512)
	default:
		return fmt.Errorf("-sasl %s: want plain, scram-sha-256 or scram-sha-512", c.sasl)
	}
	if c.user == "" || c.passwordFile == "" {
		return errors.New("-sasl needs -user and -password-file")
	}
	password, err := os.ReadFile(c.passwordFile)
	if err != nil {
		return fmt.Errorf("-password-file: %w", err)
	}
	cfg.Net.SASL.Password = strings.TrimRight(string(password), "\r\n")
	return nil
}

// client connects once it is asked for something.
func (c *connection) client(transactionalID string) (sarama.Client, error) {
	cfg, err := c.config(transactionalID)
	if err != nil {
		return nil, usageError{err}
	}
	return sarama.NewClient(c.brokers, cfg)
}
