package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

type right struct {
	resource  sarama.AclResourceType
	name      string
	operation sarama.AclOperation
}

// What docs/command.md says of ACLs is enough, and nothing less is; over TLS.
func TestACLs(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewSecure(t)
	dir := t.TempDir()
	password, ca := filepath.Join(dir, "password"), filepath.Join(dir, "ca")
	testkit.Check(t, os.WriteFile(password, []byte(brokertest.SecurePassword), 0o600))
	testkit.Check(t, os.WriteFile(ca, broker.CA, 0o600))
	for command, rights := range map[string]func(topic, group string) []right{
		"status": func(topic, group string) []right {
			return []right{{sarama.AclResourceGroup, group, sarama.AclOperationDescribe}, {sarama.AclResourceTopic, topic, sarama.AclOperationDescribe}}
		},
		"show": func(topic, _ string) []right {
			return []right{{sarama.AclResourceTopic, topic, sarama.AclOperationRead}}
		},
		"skip": func(topic, group string) []right {
			return []right{{sarama.AclResourceTopic, topic, sarama.AclOperationRead}, {sarama.AclResourceGroup, group, sarama.AclOperationRead}}
		},
	} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			topic, group := brokertest.Topic(t), brokertest.Group(t)
			testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, 1))
			_, err := brokertest.Produce(broker.Addrs(), topic, 0, brokertest.Values("a", "b")...)
			testkit.Check(t, err)
			testkit.Check(t, brokertest.ResetOffset(broker.Addrs(), group, topic, 0, 0))
			args := []string{
				command, "--brokers", strings.Join(broker.Addrs(), ","), "--tls-ca", ca, "--topic", topic,
				"--sasl", "scram-sha-512", "--user", brokertest.SecureUser, "--password-file", password,
			}
			switch command {
			case "status":
				args = append(args, "--group", group)
			case "show":
				args = append(args, "--partition", "0", "--offset", "0")
			case "skip":
				args = append(args, "--partition", "0", "--offset", "0", "--group", group, "--yes")
			}
			var out bytes.Buffer
			run := func() int {
				out.Reset()
				env := cli.NewEnv(func(string) string { return "" }, strings.NewReader(""), &out, &out)
				return env.Run(t.Context(), args, commands...)
			}
			all := rights(topic, group)
			for i := range all { // one more each time: without one of them it is refused
				testkit.Eventually(t, "a refusal", func() bool { return run() == cli.Failed })
				if !strings.Contains(strings.ToLower(out.String()), "authorized") {
					t.Errorf("with %d of %d rights it says %s", i, len(all), out.String())
				}
				testkit.Check(t, broker.Allow(all[i].resource, all[i].name, all[i].operation))
			}
			testkit.Eventually(t, "the rights", func() bool { return run() == cli.Done })
		})
	}
}

// An open transaction whose id the user may not see is not called hanging, and not aborted.
func TestUnseenTransactions(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewSecure(t)
	dir := t.TempDir()
	password, ca := filepath.Join(dir, "password"), filepath.Join(dir, "ca")
	testkit.Check(t, os.WriteFile(password, []byte(brokertest.SecurePassword), 0o600))
	testkit.Check(t, os.WriteFile(ca, broker.CA, 0o600))
	topic := brokertest.Topic(t)
	testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, 1))
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	broker.Use(cfg, sarama.SASLTypeSCRAMSHA512, brokertest.SecureAdmin, brokertest.SecurePassword)
	cfg.Producer.Return.Successes, cfg.Producer.Idempotent, cfg.Producer.RequiredAcks = true, true, sarama.WaitForAll
	cfg.Net.MaxOpenRequests, cfg.Producer.Transaction.ID = 1, brokertest.Group(t)
	producer, err := sarama.NewSyncProducer(broker.Addrs(), cfg)
	testkit.Check(t, err)
	testkit.Check(t, producer.BeginTxn())
	_, _, err = producer.SendMessage(&sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder("output")})
	testkit.Check(t, err)
	run := func(args ...string) (code int, out string) {
		var text bytes.Buffer
		env := cli.NewEnv(func(string) string { return "" }, strings.NewReader(""), &text, &text)
		code = env.Run(t.Context(), append([]string{
			"transactions", "--brokers", strings.Join(broker.Addrs(), ","), "--tls-ca", ca, "--topic", topic,
			"--sasl", "scram-sha-512", "--user", brokertest.SecureUser, "--password-file", password,
		}, args...), commands...)
		return code, text.String()
	}
	testkit.Check(t, broker.Allow(sarama.AclResourceTopic, topic, sarama.AclOperationRead))
	testkit.Check(t, broker.Allow(sarama.AclResourceCluster, "kafka-cluster", sarama.AclOperationClusterAction))
	out := ""
	testkit.Eventually(t, "the rights", func() (done bool) {
		code, text := run("--abort", "--yes")
		out = text
		return code == cli.Done
	})
	if !strings.Contains(out, "Unknown") || !strings.Contains(out, "nothing is to be aborted") {
		t.Errorf("without a right to its id: %s", out)
	}
	testkit.Check(t, producer.CommitTxn()) // it was not aborted
	testkit.Check(t, producer.Close())
}
