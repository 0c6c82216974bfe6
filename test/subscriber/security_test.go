package subscriber_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/rcrowley/go-metrics"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// comingAs makes a subscriber come to the broker as the user who has no rights but those that are given.
func comingAs(broker *brokertest.Secure, mechanism sarama.SASLMechanism, password string) testkit.Option {
	return func(c *ackpolicy.SubscriberConfig) {
		c.Kafka.Brokers = broker.Addrs()
		broker.Use(c.Kafka.OverwriteSaramaConfig, mechanism, brokertest.SecureUser, password)
	}
}

// secureTopic is newTopic on the broker, which the user may read with the group.
func secureTopic(t *testing.T, broker *brokertest.Secure, group string, records ...brokertest.Record) string {
	t.Helper()
	topic := brokertest.Topic(t)
	testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, 1))
	_, err := brokertest.Produce(broker.Addrs(), topic, 0, records...)
	testkit.Check(t, err)
	testkit.Check(t, broker.Allow(sarama.AclResourceTopic, topic, sarama.AclOperationRead))
	testkit.Check(t, broker.Allow(sarama.AclResourceGroup, group, sarama.AclOperationRead))
	return topic
}

// SASL of each kind over TLS serves the group, its commits, and letters, with no more rights than the docs name.
func TestSASLAndTLS(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewSecure(t)
	for _, mechanism := range brokertest.Mechanisms {
		t.Run(string(mechanism), func(t *testing.T) {
			t.Parallel()
			group := brokertest.Group(t)
			topic := secureTopic(t, broker, group, testkit.Numbered(3)...)
			testkit.Check(t, broker.Allow(sarama.AclResourceTopic, topic+".dlq", sarama.AclOperationCreate))
			testkit.Check(t, broker.Allow(sarama.AclResourceTopic, topic+".dlq", sarama.AclOperationWrite))
			cfg := testkit.Config(group, comingAs(broker, mechanism, brokertest.SecurePassword), testkit.DeadLetterTopic)
			if mechanism == sarama.SASLTypeSCRAMSHA512 { // as the docs have it
				caFile := filepath.Join(t.TempDir(), "ca.pem")
				testkit.Check(t, os.WriteFile(caFile, broker.CA, 0o600))
				testkit.Check(t, secure(cfg.Kafka.OverwriteSaramaConfig, caFile, brokertest.SecureUser, brokertest.SecurePassword))
			}
			s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
			testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, 3, testkit.Patience))
			s.Stop()
			s.Want(t, "0#1", "1#1", "2#1")
			if end, err := brokertest.EndOffset(broker.Addrs(), topic+".dlq", 0); err != nil || end != 3 {
				t.Errorf("%d letters, %v", end, err)
			}
			if lines := s.Log.At("error"); len(lines) > 0 {
				t.Errorf("errors: %v", lines)
			}
		})
	}
}

// Subscribe soon returns an error when the broker refuses the client, which says what to check; the broker is not
// asked in a loop.
func TestNotLetIn(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewSecure(t)
	for name, test := range map[string]struct {
		change func(*sarama.Config)
		want   string
	}{
		"wrong password":        {func(cfg *sarama.Config) { cfg.Net.SASL.Password = "wrong" }, "Net.SASL"},
		"no user":               {func(cfg *sarama.Config) { cfg.Net.SASL.Enable = false }, "Net.SASL.Enable"},
		"mechanism not offered": {func(cfg *sarama.Config) { cfg.Net.SASL.Mechanism = sarama.SASLTypeOAuth }, "Net.SASL.Mechanism OAUTHBEARER"},
		"unknown authority":     {func(cfg *sarama.Config) { cfg.Net.TLS.Config = nil }, "Net.TLS.Config.RootCAs"},
		"another broker's name": {func(cfg *sarama.Config) { cfg.Net.TLS.Config.ServerName = "other" }, "Net.TLS.Config.ServerName"},
		"no TLS":                {func(cfg *sarama.Config) { cfg.Net.TLS.Enable = false }, "Net.TLS.Enable"},
	} {
		for _, mechanism := range brokertest.Mechanisms {
			t.Run(name+", "+string(mechanism), func(t *testing.T) {
				t.Parallel()
				network := &brokertest.Network{}
				cfg := testkit.Config(brokertest.Group(t), comingAs(broker, mechanism, brokertest.SecurePassword))
				cfg.Kafka.OverwriteSaramaConfig.Net.SASL.TokenProvider = noToken{}
				test.change(cfg.Kafka.OverwriteSaramaConfig)
				network.Use(cfg.Kafka.OverwriteSaramaConfig)
				began := time.Now()
				_, err := testkit.NewSubscriber(t, cfg, testkit.NewLog(t)).Subscribe(context.Background(), "orders")
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("Subscribe says: %v, not %s", err, test.want)
				}
				if took, n := time.Since(began), network.Dials(); took > 20*time.Second || n > 20 {
					t.Errorf("that took %v and %d attempts to connect", took, n)
				}
			})
		}
	}
}

type noToken struct{}

func (noToken) Token() (*sarama.AccessToken, error) { return &sarama.AccessToken{}, nil }

// Without the rights that its dead letter topic needs a subscriber does not start.
func TestNoRightsToLetters(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewSecure(t)
	for missing, want := range map[string]string{
		"Write":  "the user needs the right to write to it",
		"Create": "cannot create it",
	} {
		t.Run(missing, func(t *testing.T) {
			t.Parallel()
			group := brokertest.Group(t)
			topic := secureTopic(t, broker, group)
			given := sarama.AclOperationWrite
			if missing == "Write" {
				given = sarama.AclOperationCreate
			}
			testkit.Check(t, broker.Allow(sarama.AclResourceTopic, topic+".dlq", given))
			cfg := testkit.Config(group, comingAs(broker, sarama.SASLTypePlaintext, brokertest.SecurePassword), testkit.DeadLetterTopic)
			_, err := testkit.NewSubscriber(t, cfg, testkit.NewLog(t)).Subscribe(context.Background(), topic)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "uthoriz") {
				t.Errorf("Subscribe says: %v", err)
			}
		})
	}
}

// Rights that are taken away stop a partition, with an error that says so, and without a hot loop; given back, it goes
// on where it was.
func TestRightsTakenAway(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewSecure(t)
	for kind, test := range map[string]struct {
		resource  sarama.AclResourceType
		operation sarama.AclOperation
		reported  string
	}{
		"topic":   {sarama.AclResourceTopic, sarama.AclOperationRead, "not authorized to access this topic"},
		"group":   {sarama.AclResourceGroup, sarama.AclOperationRead, "not authorized to access this group"},
		"letters": {sarama.AclResourceTopic, sarama.AclOperationWrite, "Dead letter not stored"},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			group := brokertest.Group(t)
			topic := secureTopic(t, broker, group, testkit.Numbered(2)...)
			letters := topic + ".dlq"
			testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), letters, 1))
			testkit.Check(t, broker.Allow(sarama.AclResourceTopic, letters, sarama.AclOperationWrite))
			name := map[string]string{"topic": topic, "group": group, "letters": letters}[kind]

			cfg := testkit.Config(group, comingAs(broker, sarama.SASLTypeSCRAMSHA512, brokertest.SecurePassword), testkit.DeadLetterTopic)
			cfg.Kafka.OverwriteSaramaConfig.Consumer.Retry.Backoff = 100 * time.Millisecond
			requests := metrics.GetOrRegisterMeter("request-rate", cfg.Kafka.OverwriteSaramaConfig.MetricRegistry)
			s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
			testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, 2, testkit.Patience))

			refusals := func() int {
				return len(testkit.Containing(s.Log.At("error", "debug"), test.reported, "not authorized"))
			} // error lines grow rare
			testkit.Check(t, broker.Forbid(test.resource, name, test.operation))
			if kind != "letters" { // where nobody notices before there is one
				testkit.Eventually(t, "an error that says so", func() bool { return refusals() > 0 })
			}
			before, began, reported := requests.Count(), time.Now(), refusals()
			_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(2)...)
			testkit.Check(t, err)
			testkit.Eventually(t, "another one", func() bool { return refusals() > reported+1 })
			if n, most := requests.Count()-before, int64(100*(1+time.Since(began).Seconds())); n > most {
				t.Errorf("%d requests in %v: a hot loop", n, time.Since(began))
			}
			if stored, err := brokertest.Committed(broker.Addrs(), group, topic, 0); err != nil || stored != 2 {
				t.Errorf("offset %d is stored, %v", stored, err)
			}
			testkit.Check(t, broker.Allow(test.resource, name, test.operation))
			testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, 4, testkit.Patience))
			s.Stop()
			s.Want(t, "0#1", "1#1", "2#1", "3#1")
			if end, err := brokertest.EndOffset(broker.Addrs(), letters, 0); err != nil || end != 4 {
				t.Errorf("%d letters, %v", end, err)
			}
		})
	}
}
