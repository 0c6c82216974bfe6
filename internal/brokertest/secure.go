package brokertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/ackpolicy/watermill-ackpolicy/internal/scram"
)

// The users of a [Secure] broker. SecureUser has no rights until [Secure.Allow] gives some, SecureAdmin has all.
const (
	SecureUser     = "app"
	SecureAdmin    = "admin"
	SecurePassword = "secret" // of both
)

// Mechanisms are those that a [Secure] broker offers.
var Mechanisms = []sarama.SASLMechanism{sarama.SASLTypePlaintext, sarama.SASLTypeSCRAMSHA256, sarama.SASLTypeSCRAMSHA512}

// secured are the Secure brokers, by address: this package's functions come there as SecureAdmin.
var secured sync.Map

// Secure is a broker that wants SASL over TLS, and goes by ACLs.
type Secure struct {
	*Broker
	CA    []byte // the certificate to trust, as PEM
	roots *x509.CertPool
}

// NewSecure returns the broker that KAFKA_SECURE_BROKERS names (scripts/kafka.sh run --secure), or one in this process.
func NewSecure(tb TB) *Secure {
	tb.Helper()
	s := &Secure{roots: x509.NewCertPool()}
	if env := os.Getenv("KAFKA_SECURE_BROKERS"); env != "" {
		ca, err := os.ReadFile(os.Getenv("KAFKA_SECURE_CA"))
		if err != nil {
			tb.Fatalf("KAFKA_SECURE_CA: %v", err)
		}
		s.Broker, s.CA = &Broker{addrs: strings.Split(env, ",")}, ca
	} else {
		certificate, err := selfSigned()
		if err != nil {
			tb.Fatalf("brokertest: making a certificate: %v", err)
		}
		opts := []kfake.Opt{
			kfake.EnableSASL(), kfake.EnableACLs(), kfake.TLS(&tls.Config{Certificates: []tls.Certificate{certificate}}),
		}
		for _, mechanism := range Mechanisms {
			opts = append(opts, kfake.Superuser(string(mechanism), SecureAdmin, SecurePassword),
				kfake.User(string(mechanism), SecureUser, SecurePassword))
		}
		s.Broker = NewFake(tb, opts...)
		s.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
	}
	if !s.roots.AppendCertsFromPEM(s.CA) {
		tb.Fatalf("brokertest: no certificate in %q", s.CA)
	}
	secured.Store(strings.Join(s.addrs, ","), s)
	return s
}

// selfSigned makes a certificate for 127.0.0.1.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// Use makes the clients that have this configuration come as the user, over TLS.
func (s *Secure) Use(cfg *sarama.Config, mechanism sarama.SASLMechanism, user, password string) {
	cfg.Net.TLS.Enable = true
	cfg.Net.TLS.Config = &tls.Config{RootCAs: s.roots}
	cfg.Net.SASL.Enable = true
	cfg.Net.SASL.Mechanism = mechanism
	cfg.Net.SASL.User, cfg.Net.SASL.Password = user, password
	if mechanism == sarama.SASLTypeSCRAMSHA256 || mechanism == sarama.SASLTypeSCRAMSHA512 {
		scram.Use(cfg, mechanism)
	}
}

// Allow gives SecureUser a right to the topic, group or transactional id of exactly this name.
func (s *Secure) Allow(resource sarama.AclResourceType, name string, operation sarama.AclOperation) error {
	err := withAdmin(s.addrs, func(admin sarama.ClusterAdmin) error {
		return admin.CreateACLs([]*sarama.ResourceAcls{{
			Resource: sarama.Resource{ResourceType: resource, ResourceName: name, ResourcePatternType: sarama.AclPatternLiteral},
			Acls: []*sarama.Acl{
				{Principal: "User:" + SecureUser, Host: "*", Operation: operation, PermissionType: sarama.AclPermissionAllow},
			},
		}})
	})
	if err != nil {
		return fmt.Errorf("allowing to %v %s: %w", operation.String(), name, err)
	}
	return nil
}

// Forbid takes away what Allow gave.
func (s *Secure) Forbid(resource sarama.AclResourceType, name string, operation sarama.AclOperation) error {
	principal := "User:" + SecureUser
	err := withAdmin(s.addrs, func(admin sarama.ClusterAdmin) error {
		matching, err := admin.DeleteACL(sarama.AclFilter{
			ResourceType: resource, ResourceName: &name, ResourcePatternTypeFilter: sarama.AclPatternLiteral,
			Principal: &principal, Operation: operation, PermissionType: sarama.AclPermissionAllow,
		}, false)
		if err == nil && len(matching) != 1 {
			err = fmt.Errorf("%d ACLs found", len(matching))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("forbidding to %v %s: %w", operation.String(), name, err)
	}
	return nil
}
