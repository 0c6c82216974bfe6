package connections

import (
	"sync/atomic"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/dial"
)

// Lease is one user's share of a pool.
type Lease struct {
	pool   *Pool
	of     *opened
	bundle *bundle // nil without short requests
	short  *Client // nil without short requests
	cut    atomic.Bool
	over   atomic.Bool
}

// Shared returns the pool's client with the number of its configuration. The user must not close it.
func (l *Lease) Shared(i int) sarama.Client { return l.of.clients[i] }

// Client returns a client with the metadata of a shared one, and with connections of its own. It
// opens these when they are needed, and closes them with Close.
func (l *Lease) Client(i int, config *sarama.Config) *Client {
	return &Client{Client: l.of.clients[i], config: config, brokers: newBrokers(config)}
}

// Short returns the client for short requests.
func (l *Lease) Short() *Client { return l.short }

// Break ends requests that may be the user's: those for metadata, which their other users repeat,
// and those of its bundle while the user waits for an offset there.
func (l *Lease) Break() {
	l.of.dialer.Break()
	if l.short != nil && l.short.asking.Load() > 0 {
		l.bundle.dialer.Break()
	}
}

// Abort ends requests and connection attempts, also those of others on the same bundle. A user calls
// it while its own request is late.
func (l *Lease) Abort() {
	l.of.dialer.Abort()
	if l.bundle != nil {
		l.bundle.dialer.Abort()
	}
}

// AbortLate calls Abort repeatedly, from a while after stop is closed until done is called.
func (l *Lease) AbortLate(stop <-chan struct{}) (done func()) { return dial.AbortLate(stop, l.Abort) }

// Cut ends the user's short requests, and lets it send no more. If all users have called it, the connections are cut.
func (l *Lease) Cut() {
	if l.cut.Swap(true) {
		return
	}
	if l.short != nil {
		l.short.closed.Store(true)
	}
	l.Break()
	l.pool.cut(l)
}

// Release returns the share. The last user closes the connections.
func (l *Lease) Release() error {
	if l.over.Swap(true) {
		return nil
	}
	l.Cut()
	return l.pool.leave(l)
}
