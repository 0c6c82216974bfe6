package ackpolicy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// While the broker is away a subscription tries to come back with growing pauses, not in a loop, and goes on where it was.
func TestReconnect(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"group", "no group"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const down = 3 * time.Second
			network := &brokertest.Network{}
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(3)...)
			if kind == "no group" {
				group = ""
			}
			cfg := config(group)
			cfg.Kafka.OverwriteSaramaConfig.Metadata.Retry.Max = 0 // the pauses are to be our own
			network.Use(cfg.Kafka.OverwriteSaramaConfig)
			s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, 3)
			if group != "" {
				waitCommitted(t, group, topic, 0, 3)
			}
			network.Cut()
			before := network.Dials()
			<-time.After(down)
			if n := network.Dials() - before; n < 1 || n > 30 {
				t.Errorf("%d attempts to connect in %v", n, down)
			}
			network.Heal()
			produce(t, topic, 0, numbered(2)...)
			s.journal.wait(t, 5)
			if group != "" {
				waitCommitted(t, group, topic, 0, 5)
			}
			s.stop()
			s.journal.want(t, "0#1", "1#1", "2#1", "3#1", "4#1")
		})
	}
}

// SASL in all three kinds, over TLS, for the group, for commits and for letters; a wrong password is told as that, soon,
// and does not hammer the broker.
func TestSASLAndTLS(t *testing.T) {
	t.Parallel()
	const user, password = "app", "secret"
	server, roots := certificate(t)
	for _, mechanism := range []sarama.SASLMechanism{sarama.SASLTypePlaintext, sarama.SASLTypeSCRAMSHA256, sarama.SASLTypeSCRAMSHA512} {
		t.Run(string(mechanism), func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t, kfake.EnableSASL(), kfake.Superuser(string(mechanism), user, password),
				kfake.TLS(&tls.Config{Certificates: []tls.Certificate{server}}))
			network := &brokertest.Network{}
			secured := func(password string) change {
				return func(c *ackpolicy.SubscriberConfig) {
					c.Kafka.Brokers = broker.Addrs()
					authenticate(c.Kafka.OverwriteSaramaConfig, mechanism, user, password)
					c.Kafka.OverwriteSaramaConfig.Net.TLS.Enable = true
					c.Kafka.OverwriteSaramaConfig.Net.TLS.Config = &tls.Config{RootCAs: roots, ServerName: "broker.test"}
					network.Use(c.Kafka.OverwriteSaramaConfig)
				}
			}
			topic, group := brokertest.Topic(t), brokertest.Group(t)
			check(t, broker.Kfake().CreateTopic(topic, 1, nil))
			cfg := config(group, secured(password), toTopic)
			producer, err := sarama.NewSyncProducer(cfg.Kafka.Brokers, withSuccesses(cfg.Kafka.OverwriteSaramaConfig))
			check(t, err)
			for range 3 {
				_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder("x")})
				check(t, err)
			}
			check(t, producer.Close())
			s := consume(t, cfg, topic, rejectAll, ackpolicy.NackOnError.Middleware)
			eventually(t, "the commit", func() bool {
				info := broker.Kfake().GroupInfo(group)
				return info != nil && info.Commits[topic][0].Offset == 3
			})
			s.stop()
			if info := broker.Kfake().PartitionInfo(topic+".dlq", 0); info == nil || info.HighWatermark != 3 {
				t.Errorf("letters: %+v", info)
			}

			// kfake just closes the connection, where Kafka says why.
			broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.SASLAuthenticate}, Err: kerr.SaslAuthenticationFailed, Count: -1})
			before, began := network.Dials(), time.Now()
			sub := newSubscriber(t, config(group, secured("wrong")), newLog(t))
			_, err = sub.Subscribe(context.Background(), topic)
			if err == nil || !strings.Contains(err.Error(), "Authentication failed") {
				t.Errorf("with a wrong password Subscribe says: %v", err)
			}
			if took, n := time.Since(began), network.Dials()-before; took > 20*time.Second || n > 20 {
				t.Errorf("that took %v and %d attempts to connect", took, n)
			}
		})
	}
}

func withSuccesses(cfg *sarama.Config) *sarama.Config {
	c := *cfg
	c.Producer.Return.Successes = true
	return &c
}

func authenticate(cfg *sarama.Config, mechanism sarama.SASLMechanism, user, password string) {
	cfg.Net.SASL.Enable = true
	cfg.Net.SASL.Mechanism = mechanism
	cfg.Net.SASL.User, cfg.Net.SASL.Password = user, password
	cfg.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return &scramClient{mechanism: mechanism} }
}

// scramClient lends sarama franz-go's SCRAM.
type scramClient struct {
	mechanism sarama.SASLMechanism
	session   sasl.Session
	first     []byte
	done      bool
}

func (c *scramClient) Begin(user, password, _ string) (err error) {
	auth := scram.Auth{User: user, Pass: password}
	mechanism := auth.AsSha256Mechanism()
	if c.mechanism == sarama.SASLTypeSCRAMSHA512 {
		mechanism = auth.AsSha512Mechanism()
	}
	c.session, c.first, err = mechanism.Authenticate(context.Background(), "")
	return err
}

func (c *scramClient) Step(challenge string) (answer string, err error) {
	if challenge == "" {
		return string(c.first), nil
	}
	var out []byte
	c.done, out, err = c.session.Challenge([]byte(challenge))
	return string(out), err
}

func (c *scramClient) Done() bool { return c.done }

// certificate makes one for the broker, and a pool that trusts it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"broker.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(t, err)
	parsed, err := x509.ParseCertificate(der)
	check(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}
