package redrive

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// These need a broker with accounts or certificates, and so kfake.

func TestSASL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	check(t, os.WriteFile(password, []byte("s,e=cret\n"), 0o600))
	wrong := filepath.Join(dir, "wrong")
	check(t, os.WriteFile(wrong, []byte("wrong"), 0o600))
	for flag, mechanism := range map[string]string{"plain": "PLAIN", "scram-sha-256": "SCRAM-SHA-256", "scram-sha-512": "SCRAM-SHA-512"} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t, kfake.EnableSASL(), kfake.Superuser(mechanism, "al,i=ce", "s,e=cret"), kfake.SeedTopics(1, "orders", "orders.dlq"))
			b := &bed{t: t, broker: broker, origin: "orders", dlq: "orders.dlq"}
			args := []string{"send", "-sasl", flag, "-user", "al,i=ce", "-password-file"}
			b.want(exitDone, []string{"No letter in orders.dlq is open."}, append(args, password)...)
			b.want(exitFailed, []string{"cannot connect to", "credentials"}, append(args, wrong)...)
		})
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	caFile, certFile, keyFile := filepath.Join(dir, "ca"), filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	pair := certificate(t, caFile, certFile, keyFile)
	trusted := x509.NewCertPool()
	text, err := os.ReadFile(caFile)
	check(t, err)
	trusted.AppendCertsFromPEM(text)
	broker := brokertest.NewFake(t, kfake.SeedTopics(1, "orders", "orders.dlq"), kfake.TLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: trusted, ClientAuth: tls.RequireAndVerifyClientCert,
	}))
	b := &bed{t: t, broker: broker, origin: "orders", dlq: "orders.dlq"}
	b.want(exitDone, []string{"No letter in orders.dlq is open."}, "send", "-tls-ca", caFile, "-tls-cert", certFile, "-tls-key", keyFile)
	b.want(exitFailed, []string{"cannot connect to", "certificate"}, "list", "-tls-ca", caFile)
	b.want(exitFailed, []string{"cannot connect to", "certificate"}, "list", "-tls", "-tls-cert", certFile, "-tls-key", keyFile)
}

// certificate makes one that signs itself, for a server and a client on 127.0.0.1.
func certificate(t *testing.T, caFile, certFile, keyFile string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	check(t, err)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	check(t, os.WriteFile(caFile, cert, 0o600))
	check(t, os.WriteFile(certFile, cert, 0o600))
	check(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600))
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	check(t, err)
	return pair
}

// What docs/dead-letters.md says of ACLs is enough, and nothing less is.
func TestACLs(t *testing.T) {
	t.Parallel()
	topics, groups, ids := kmsg.ACLResourceTypeTopic, kmsg.ACLResourceTypeGroup, kmsg.ACLResourceTypeTransactionalId
	allow := func(resource kmsg.ACLResourceType, name string, operation kmsg.ACLOperation) kfake.ACL {
		return kfake.ACL{Resource: resource, Name: name, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: operation, Allow: true}
	}
	list := []kfake.ACL{allow(topics, "orders.dlq", kmsg.ACLOperationRead), allow(groups, "orders.dlq-redrive", kmsg.ACLOperationDescribe)}
	send := append(slices.Clone(list), allow(groups, "orders.dlq-redrive", kmsg.ACLOperationRead),
		allow(topics, "orders", kmsg.ACLOperationWrite), allow(ids, "orders.dlq-redrive", kmsg.ACLOperationWrite))
	password := filepath.Join(t.TempDir(), "password")
	check(t, os.WriteFile(password, []byte("secret"), 0o600))
	run := func(acls []kfake.ACL, command string) result {
		broker := brokertest.NewFake(t, kfake.EnableSASL(), kfake.EnableACLs(), kfake.SeedTopics(1, "orders", "orders.dlq"),
			kfake.Superuser("PLAIN", "root", "secret"), kfake.User("PLAIN", "alice", "secret", acls...))
		cfg := sarama.NewConfig()
		cfg.Net.SASL.Enable, cfg.Net.SASL.User, cfg.Net.SASL.Password = true, "root", "secret"
		cfg.Producer.Return.Successes = true
		producer, err := sarama.NewSyncProducer(broker.Addrs(), cfg)
		check(t, err)
		_, _, err = producer.SendMessage(&sarama.ProducerMessage{
			Topic: "orders.dlq", Headers: []sarama.RecordHeader{header("topic_poisoned", "orders")},
		})
		check(t, errors.Join(err, producer.Close()))
		b := &bed{t: t, broker: broker, origin: "orders", dlq: "orders.dlq"}
		return b.run(command, "-sasl", "plain", "-user", "alice", "-password-file", password)
	}
	for command, acls := range map[string][]kfake.ACL{cmdList: list, cmdSend: send} {
		if r := run(acls, command); r.code != exitDone {
			t.Errorf("%s with what the docs say: %v", command, r)
		}
		for i, missing := range acls {
			if command == cmdSend && missing.Operation == kmsg.ACLOperationDescribe {
				continue // Read implies it
			}
			if r := run(slices.Delete(slices.Clone(acls), i, i+1), command); r.code != exitFailed {
				t.Errorf("%s without %v on %s: %v", command, missing.Operation, missing.Name, r)
			}
		}
	}
}
