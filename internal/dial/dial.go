// Package dial makes connections that can be cut. sarama holds the lock of a broker during
// a request, so there is no other way to make it stop waiting for a response.
package dial

import (
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"golang.org/x/net/proxy"
)

// Dialer makes connections for sarama clients, so that all of them can be cut.
type Dialer struct {
	inner interface {
		Dial(network, addr string) (net.Conn, error)
	}
	ctx    context.Context
	end    context.CancelFunc
	worked atomic.Bool
	// Once makes connections that are closed during a request drop what they have not sent,
	// so that it cannot arrive after what the next connection sends. Set it before use.
	Once bool

	mu      sync.Mutex
	round   context.Context // done with the next Abort; if it is done, no connections are made
	abort   context.CancelFunc
	all     map[*conn]struct{}
	dialing int
	quiet   chan struct{} // closed after Cut, once nothing dials any more
}

// dialPatience is how long Cut waits for a dial function that cannot be interrupted.
const dialPatience = time.Second / 2

type conn struct {
	net.Conn
	d       *Dialer
	waiting atomic.Bool // something was sent since the last bytes arrived
}

func (c *conn) Write(b []byte) (int, error) {
	c.waiting.Store(true)
	return c.Conn.Write(b)
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.waiting.Store(false)
	}
	return n, err
}

// New returns a dialer that uses the first configuration's way to connect, and sets it in
// all configurations.
func New(cfg *sarama.Config, others ...*sarama.Config) *Dialer {
	d := &Dialer{all: map[*conn]struct{}{}, quiet: make(chan struct{})}
	d.ctx, d.end = context.WithCancel(context.Background())
	d.round, d.abort = context.WithCancel(d.ctx)
	if cfg.Net.Proxy.Enable {
		d.inner = cfg.Net.Proxy.Dialer
	} else {
		d.inner = &net.Dialer{Timeout: cfg.Net.DialTimeout, KeepAlive: cfg.Net.KeepAlive, LocalAddr: cfg.Net.LocalAddr}
	}
	for _, cfg := range append(others, cfg) {
		cfg.Net.Proxy.Enable = true
		cfg.Net.Proxy.Dialer = d
	}
	return d
}

// Dial implements sarama's proxy dialer.
func (d *Dialer) Dial(network, addr string) (net.Conn, error) {
	d.mu.Lock()
	if err := d.round.Err(); err != nil {
		d.mu.Unlock()
		return nil, err
	}
	d.dialing++
	round := d.round
	d.mu.Unlock()

	var inner net.Conn
	var err error
	if cd, ok := d.inner.(proxy.ContextDialer); ok {
		inner, err = cd.DialContext(round, network, addr)
	} else {
		inner, err = d.inner.Dial(network, addr)
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.dialed()
	if err == nil && round.Err() != nil { // it was cut meanwhile
		err = round.Err()
		_ = inner.Close()
	}
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, d: d}
	d.all[c] = struct{}{}
	return c, nil
}

func (d *Dialer) dialed() {
	if d.dialing--; d.dialing == 0 && d.ctx.Err() != nil {
		close(d.quiet) // nothing dials any more
	}
}

// Close removes the connection from the list only once it is closed: sarama closes
// connections in goroutines that nobody waits for, and Cut must not return before them.
func (c *conn) Close() error {
	err := c.close()
	c.d.mu.Lock()
	delete(c.d.all, c)
	c.d.mu.Unlock()
	return err
}

func (c *conn) close() error {
	if l, ok := c.Conn.(interface{ SetLinger(sec int) error }); ok && c.d.Once && c.waiting.Load() {
		_ = l.SetLinger(0)
	}
	return c.Conn.Close()
}

// Break closes the connections on which a request waits for its response. The others stay,
// and new ones can be made: leaving the group needs one.
func (d *Dialer) Break() {
	for _, c := range d.conns() {
		if c.waiting.Load() {
			_ = c.close()
		}
	}
}

func (d *Dialer) conns() []*conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.all))
}

// Refuses reports whether no connections are made: after Cut, or see EndAfter.
func (d *Dialer) Refuses() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.round.Err() != nil
}

// Cut closes every connection, allows no new ones, and waits for attempts under way.
func (d *Dialer) Cut() {
	d.mu.Lock()
	if d.ctx.Err() == nil {
		d.end()
		if d.dialing == 0 {
			close(d.quiet)
		}
	}
	d.mu.Unlock()
	for _, c := range d.conns() {
		_ = c.Conn.Close()
	}
	timer := time.NewTimer(dialPatience)
	defer timer.Stop()
	select {
	case <-d.quiet:
	case <-timer.C:
	}
}
