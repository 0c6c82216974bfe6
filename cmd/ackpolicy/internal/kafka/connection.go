// Package kafka connects the commands to Kafka, and reads what they show: offsets,
// group members and records.
package kafka

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/IBM/sarama"
	"github.com/spf13/pflag"

	"github.com/ackpolicy/watermill-ackpolicy/internal/scram"
)

const clientID = "ackpolicy"

// Connection is how to reach Kafka, as the flags that all commands share say it. Files are PEM.
type Connection struct {
	Brokers           []string
	TLS               bool
	CAFile            string
	CertFile, KeyFile string
	SASL              string
	User              string
	PasswordFile      string
	Verbose           bool

	Admin       bool                    // asks for what sarama's ClusterAdmin can, for Kafka 3.0 and newer
	Compression sarama.CompressionCodec // of what is written
}

// Mechanisms are the values of --sasl.
var Mechanisms = []string{"plain", "scram-sha-256", "scram-sha-512"}

// Flags defines the flags.
func (c *Connection) Flags(flags *pflag.FlagSet, getenv func(string) string) {
	flags.StringSliceVar(&c.Brokers, "brokers", fields(getenv("KAFKA_BROKERS")), "`host:port`s, comma separated; KAFKA_BROKERS, if not given")
	flags.BoolVar(&c.TLS, "tls", false, "connect by TLS; a --tls- flag implies it")
	flags.StringVar(&c.CAFile, "tls-ca", "", "PEM `file` with the certificates to trust (default the system's)")
	flags.StringVar(&c.CertFile, "tls-cert", "", "PEM `file` with the client's certificate")
	flags.StringVar(&c.KeyFile, "tls-key", "", "PEM `file` with its key")
	flags.StringVar(&c.SASL, "sasl", "", "`mechanism`: "+strings.Join(Mechanisms, ", "))
	flags.StringVar(&c.User, "user", "", "SASL `user`")
	flags.StringVar(&c.PasswordFile, "password-file", "", "`file` with the SASL password")
	flags.BoolVarP(&c.Verbose, "verbose", "v", false, "log what the Kafka client does")
}

func fields(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// Check returns what is wrong with the flags.
func (c *Connection) Check() error {
	c.Brokers = fields(strings.Join(c.Brokers, ","))
	if len(c.Brokers) == 0 {
		return errors.New("no brokers: set --brokers or KAFKA_BROKERS to host:port")
	}
	_, err := c.Config("")
	return err
}

// Config returns the configuration of a client. Its producer is transactional if there is an id.
func (c *Connection) Config(transactionalID string) (*sarama.Config, error) {
	cfg := sarama.NewConfig()
	cfg.ClientID = clientID
	cfg.Version = sarama.V2_8_0_0
	cfg.Metadata.AllowAutoTopicCreation = false
	cfg.Metadata.Full = false // of the topics that are asked for, not of all
	if c.Admin {
		cfg.Version = sarama.V3_0_0_0
		cfg.Metadata.Full = true // or it finds no controller
	}
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
	cfg.Producer.Compression = c.Compression
	cfg.Producer.MaxMessageBytes = int(sarama.MaxRequestSize) - 1<<20 // how large a record may be is the broker's to say
	if err := c.secure(cfg); err != nil {
		return nil, err
	}
	return cfg, cfg.Validate()
}

func (c *Connection) secure(cfg *sarama.Config) error {
	if c.TLS || c.CAFile != "" || c.CertFile != "" || c.KeyFile != "" {
		cfg.Net.TLS.Enable = true
		cfg.Net.TLS.Config = &tls.Config{MinVersion: tls.VersionTLS12}
		if c.CAFile != "" {
			pem, err := os.ReadFile(c.CAFile)
			if err != nil {
				return fmt.Errorf("--tls-ca: %w", err)
			}
			cfg.Net.TLS.Config.RootCAs = x509.NewCertPool()
			if !cfg.Net.TLS.Config.RootCAs.AppendCertsFromPEM(pem) {
				return fmt.Errorf("--tls-ca: %s holds no certificate", c.CAFile)
			}
		}
		if c.CertFile != "" || c.KeyFile != "" {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			if err != nil {
				return fmt.Errorf("--tls-cert, --tls-key: %w", err)
			}
			cfg.Net.TLS.Config.Certificates = []tls.Certificate{pair}
		}
	}
	if c.SASL == "" {
		if c.User != "" || c.PasswordFile != "" {
			return errors.New("--user and --password-file are for --sasl: want " + strings.Join(Mechanisms, ", "))
		}
		return nil
	}
	cfg.Net.SASL.Enable = true
	cfg.Net.SASL.User = c.User
	switch c.SASL {
	case "plain":
		cfg.Net.SASL.Mechanism = sarama.SASLTypePlaintext
	case "scram-sha-256":
		scram.Use(cfg, sarama.SASLTypeSCRAMSHA256)
	case "scram-sha-512":
		scram.Use(cfg, sarama.SASLTypeSCRAMSHA512)
	default:
		return fmt.Errorf("--sasl %s: want %s", c.SASL, strings.Join(Mechanisms, ", "))
	}
	if c.User == "" || c.PasswordFile == "" {
		return errors.New("--sasl needs --user and --password-file")
	}
	password, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return fmt.Errorf("--password-file: %w", err)
	}
	cfg.Net.SASL.Password = strings.TrimRight(string(password), "\r\n")
	return nil
}

// Client connects. The client's own log goes to logs, if that was asked for.
func (c *Connection) Client(transactionalID string, logs io.Writer) (sarama.Client, error) {
	cfg, err := c.Config(transactionalID)
	if err != nil {
		return nil, err
	}
	if c.Verbose {
		sarama.Logger = log.New(logs, "kafka: ", log.LstdFlags)
	}
	client, err := sarama.NewClient(c.Brokers, cfg)
	if err != nil {
		return nil, c.Explain(err)
	}
	return client, nil
}

// Impatient connects for the completion of a shell, which has somebody wait for each key.
func (c *Connection) Impatient() (sarama.Client, error) {
	cfg, err := c.Config("")
	if err != nil {
		return nil, err
	}
	cfg.Metadata.Full = true // names are what is asked for
	cfg.Metadata.Retry.Max, cfg.Admin.Retry.Max = 0, 0
	cfg.Net.DialTimeout, cfg.Net.ReadTimeout, cfg.Admin.Timeout = time.Second, 2*time.Second, 2*time.Second
	return sarama.NewClient(fields(strings.Join(c.Brokers, ",")), cfg)
}

// Explain says of an error of the connection what to look at.
func (c *Connection) Explain(err error) error {
	if !errors.Is(err, sarama.ErrOutOfBrokers) {
		return err
	}
	hint := ""
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		hint = ". A broker that wants TLS, or other credentials, closes the connection"
	}
	return fmt.Errorf("cannot connect to %s: %w%s", strings.Join(c.Brokers, ","), err, hint)
}
