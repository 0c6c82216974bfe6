package connections

import (
	"sync"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/dial"
)

// Lease is one user's share of a pool.
type Lease struct {
	pool   *Pool
	of     *opened
	bundle *bundle // nil without short requests
	short  *Client // nil without short requests
	once   sync.Once
	err    error
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

// Cut lets the user send no more short requests.
func (l *Lease) Cut() {
	if l.short != nil {
		l.short.closed.Store(true)
	}
	l.Break()
}

// Release returns the share. The last user closes the connections.
func (l *Lease) Release() error {
	l.once.Do(func() { l.err = l.pool.leave(l) })
	return l.err
}
