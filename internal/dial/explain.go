package dial

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/IBM/sarama"
)

// Explain adds to a connection error which setting to look at.
func Explain(cfg *sarama.Config, err error) error { return explained(err, hint(cfg, err)) }

func explained(err error, hint string) error {
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, hint)
}

// Worked records that the brokers have responded, so that the configuration is acceptable.
func (d *Dialer) Worked() { d.worked.Store(true) }

// Explain is [Explain] for the dialer's connections.
func (d *Dialer) Explain(cfg *sarama.Config, err error) error {
	switch {
	case !d.worked.Load():
		return Explain(cfg, err)
	case closed(err):
		return explained(err, "the broker closed the connection, though it has accepted others with these settings. It stops, or "+limits)
	case withoutReason(err):
		return err
	}
	return Explain(cfg, err)
}

// limits is the usual reason why a broker closes new connections without reading from them.
const limits = "it has as many as it accepts: see the broker's max.connections.per.ip (and its overrides), max.connections and connection.creation.rate"

// closed reports whether the other side closed the connection.
func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
}

// withoutReason reports whether sarama's error lacks the brokers' response.
func withoutReason(err error) bool {
	return errors.Is(err, sarama.ErrOutOfBrokers) && errors.Unwrap(err) == nil
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
	case closed(err):
		return "the broker closed the connection. If it is up, compare Net.TLS.Enable, Net.SASL.Enable and the credentials " +
			"with what this listener wants. Or " + limits
	case withoutReason(err) && cfg.Net.SASL.Enable:
		// sarama logs the broker's response but leaves it out of its error, except for a wrong password.
		return fmt.Sprintf("a broker refused. Does this listener offer Net.SASL.Mechanism %s?", cfg.Net.SASL.Mechanism)
	}
	return ""
}
