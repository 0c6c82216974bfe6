package dial

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/IBM/sarama"
)

// Explain adds to an error of connecting what to look at in the configuration.
func Explain(cfg *sarama.Config, err error) error {
	if hint := hint(cfg, err); hint != "" {
		return fmt.Errorf("%w: %s", err, hint)
	}
	return err
}

func hint(cfg *sarama.Config, err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		return "Net.TLS.Config.RootCAs must hold the CA of the brokers' certificates"
	case errors.As(err, &name):
		return "connect to a name that the certificate holds, or set Net.TLS.Config.ServerName to one"
	case errors.Is(err, sarama.ErrSASLAuthenticationFailed):
		return "check Net.SASL.User, Net.SASL.Password and Net.SASL.Mechanism"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return "the broker closed the connection. If it is up, compare Net.TLS.Enable, Net.SASL.Enable and the credentials " +
			"with what this listener wants"
	case errors.Is(err, sarama.ErrOutOfBrokers) && errors.Unwrap(err) == nil && cfg.Net.SASL.Enable:
		// What a broker answers is logged by sarama, and left out of its error, but for a wrong password.
		return fmt.Sprintf("a broker refused. Does this listener offer Net.SASL.Mechanism %s?", cfg.Net.SASL.Mechanism)
	}
	return ""
}
