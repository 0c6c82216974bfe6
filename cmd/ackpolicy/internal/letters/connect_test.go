package letters

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kfake"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// These need a broker with accounts or certificates of their own, and so kfake.

func TestSASL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	testkit.Check(t, os.WriteFile(password, []byte("s,e=cret\n"), 0o600))
	wrong := filepath.Join(dir, "wrong")
	testkit.Check(t, os.WriteFile(wrong, []byte("wrong"), 0o600))
	for flag, mechanism := range map[string]string{"plain": "PLAIN", "scram-sha-256": "SCRAM-SHA-256", "scram-sha-512": "SCRAM-SHA-512"} {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t, kfake.EnableSASL(), kfake.Superuser(mechanism, "al,i=ce", "s,e=cret"), kfake.SeedTopics(1, "orders", "orders.dlq"))
			b := &bed{t: t, broker: broker, origin: "orders", dlq: "orders.dlq"}
			args := []string{"send", "--sasl", flag, "--user", "al,i=ce", "--password-file"}
			b.want(exitDone, []string{"There are no letters in orders.dlq: it is empty."}, append(args, password)...)
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
	testkit.Check(t, err)
	trusted.AppendCertsFromPEM(text)
	broker := brokertest.NewFake(t, kfake.SeedTopics(1, "orders", "orders.dlq"), kfake.TLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: trusted, ClientAuth: tls.RequireAndVerifyClientCert,
	}))
	b := &bed{t: t, broker: broker, origin: "orders", dlq: "orders.dlq"}
	b.want(exitDone, []string{"There are no letters in orders.dlq: it is empty."}, "send", "--tls-ca", caFile, "--tls-cert", certFile, "--tls-key", keyFile)
	b.want(exitFailed, []string{"cannot connect to", "certificate"}, "list", "--tls-ca", caFile)
	b.want(exitFailed, []string{"cannot connect to", "certificate"}, "list", "--tls", "--tls-cert", certFile, "--tls-key", keyFile)
}

// certificate makes one that signs itself, for a server and a client on 127.0.0.1.
func certificate(t *testing.T, caFile, certFile, keyFile string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	testkit.Check(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	testkit.Check(t, err)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	testkit.Check(t, os.WriteFile(caFile, cert, 0o600))
	testkit.Check(t, os.WriteFile(certFile, cert, 0o600))
	testkit.Check(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600))
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	testkit.Check(t, err)
	return pair
}

// What docs/dead-letters.md says of ACLs is enough, and nothing less is; over TLS.
func TestACLs(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewSecure(t)
	dir := t.TempDir()
	password, caFile := filepath.Join(dir, "password"), filepath.Join(dir, "ca")
	testkit.Check(t, os.WriteFile(password, []byte(brokertest.SecurePassword), 0o600))
	testkit.Check(t, os.WriteFile(caFile, broker.CA, 0o600))
	login := []string{"--tls-ca", caFile, "--sasl", "scram-sha-512", "--user", brokertest.SecureUser, "--password-file", password}
	type right struct {
		resource  sarama.AclResourceType
		name      string
		operation sarama.AclOperation
	}
	for _, command := range []string{cmdList, cmdSend} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			b := newBedOn(t, broker.Broker, 1)
			b.letter(0, "k", "v", ackpolicy.Letter{})
			rights := []right{
				{sarama.AclResourceTopic, b.dlq, sarama.AclOperationRead},
				{sarama.AclResourceGroup, b.group(), sarama.AclOperationDescribe},
			}
			if command == cmdSend {
				rights = []right{ // Read implies Describe
					{sarama.AclResourceTopic, b.dlq, sarama.AclOperationRead},
					{sarama.AclResourceGroup, b.group(), sarama.AclOperationRead},
					{sarama.AclResourceTopic, b.origin, sarama.AclOperationWrite},
					{sarama.AclResourceTransactionalID, b.group(), sarama.AclOperationWrite},
				}
			}
			for _, r := range rights {
				testkit.Check(t, broker.Allow(r.resource, r.name, r.operation))
			}
			args := append([]string{command}, login...)
			probe := args
			if command == cmdSend {
				probe = append(args, "--dry-run")
			}
			for _, r := range rights {
				testkit.Check(t, broker.Forbid(r.resource, r.name, r.operation))
				testkit.Eventually(t, "a refusal without "+r.operation.String()+" on "+r.name, func() bool { return b.run(args...).Code == exitFailed })
				testkit.Check(t, broker.Allow(r.resource, r.name, r.operation))
				testkit.Eventually(t, "the right to be back", func() bool { return b.run(probe...).Code == exitDone })
			}
			b.want(exitDone, map[string][]string{cmdList: {"1 letter,"}, cmdSend: {"Sent 1 letter."}}[command], args...)
		})
	}
}
