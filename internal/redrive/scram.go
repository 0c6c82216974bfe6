package redrive

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"
)

// scram is the client's side of SCRAM (RFC 5802), which sarama leaves to its users:
// without channel binding, and without a normalisation of passwords that are not ASCII.
type scram struct {
	newHash         func() hash.Hash
	nonce           func() string // rand.Text, but for tests
	step            int
	password        string
	first, clientID string // the client's first message without its header; its nonce
	serverSignature []byte
}

// What a server may ask for: RFC 5802 wants 4,096 at least.
const minIterations, maxIterations = 4096, 1 << 20

const gs2Header = "n,,"

func newScram(newHash func() hash.Hash) *scram { return &scram{newHash: newHash, nonce: rand.Text} }

// Begin implements sarama.SCRAMClient.
func (s *scram) Begin(user, password, _ string) error {
	s.password, s.clientID, s.step = password, s.nonce(), 0
	s.first = "n=" + strings.NewReplacer("=", "=3D", ",", "=2C").Replace(user) + ",r=" + s.clientID
	return nil
}

// Step implements sarama.SCRAMClient.
func (s *scram) Step(challenge string) (string, error) {
	s.step++
	switch s.step {
	case 1:
		return gs2Header + s.first, nil
	case 2:
		return s.prove(challenge)
	case 3:
		return "", s.verify(challenge)
	}
	return "", errors.New("SCRAM: the server goes on after the end")
}

// Done implements sarama.SCRAMClient.
func (s *scram) Done() bool { return s.step >= 3 }

// prove answers the server's first message.
func (s *scram) prove(challenge string) (string, error) {
	fields := scramFields(challenge)
	salt, err := base64.StdEncoding.DecodeString(fields["s"])
	iterations, err2 := strconv.Atoi(fields["i"])
	switch {
	case fields["e"] != "":
		return "", fmt.Errorf("SCRAM: the server says %q", fields["e"])
	case err != nil || err2 != nil || len(salt) == 0:
		return "", errors.New("SCRAM: the server's challenge cannot be read")
	case !strings.HasPrefix(fields["r"], s.clientID) || len(fields["r"]) == len(s.clientID):
		return "", errors.New("SCRAM: the server's nonce does not continue ours")
	case iterations < minIterations || iterations > maxIterations:
		return "", fmt.Errorf("SCRAM: the server wants %d iterations, not %d to %d", iterations, minIterations, maxIterations)
	}
	salted, err := pbkdf2.Key(s.newHash, s.password, salt, iterations, s.newHash().Size())
	if err != nil {
		return "", fmt.Errorf("SCRAM: %w", err)
	}
	final := "c=" + base64.StdEncoding.EncodeToString([]byte(gs2Header)) + ",r=" + fields["r"]
	all := s.first + "," + challenge + "," + final
	clientKey := s.mac(salted, "Client Key")
	stored := s.newHash()
	stored.Write(clientKey)
	proof := s.mac(stored.Sum(nil), all)
	subtle.XORBytes(proof, proof, clientKey)
	s.serverSignature = s.mac(s.mac(salted, "Server Key"), all)
	return final + ",p=" + base64.StdEncoding.EncodeToString(proof), nil
}

// verify checks that the server knows the password, too.
func (s *scram) verify(challenge string) error {
	fields := scramFields(challenge)
	if fields["e"] != "" {
		return fmt.Errorf("SCRAM: the server says %q", fields["e"])
	}
	signature, err := base64.StdEncoding.DecodeString(fields["v"])
	if err != nil || !hmac.Equal(signature, s.serverSignature) {
		return errors.New("SCRAM: the server does not prove that it knows the password")
	}
	return nil
}

func (s *scram) mac(key []byte, text string) []byte {
	m := hmac.New(s.newHash, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}

func scramFields(message string) map[string]string {
	fields := map[string]string{}
	for _, field := range strings.Split(message, ",") {
		if name, value, ok := strings.Cut(field, "="); ok {
			fields[name] = value
		}
	}
	return fields
}
