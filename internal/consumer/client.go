package consumer

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"golang.org/x/net/proxy"
)

// clients are the two connections of a subscription: commits on the one that
// also fetches would wait behind the fetch.
type clients struct {
	fetch *positionClient
	side  sarama.Client // commits, and reads single records again
}

func open(cfg *Config) (*clients, error) {
	fetch, err := sarama.NewClient(cfg.Brokers, cfg.Sarama)
	if err != nil {
		return nil, err
	}
	c := &clients{fetch: &positionClient{Client: fetch, offsets: map[positionKey]int64{}}}
	if c.side, err = sarama.NewClient(cfg.Brokers, cfg.Side); err != nil {
		_ = fetch.Close()
		return nil, err
	}
	return c, nil
}

func (c *clients) close() error {
	return errors.Join(c.fetch.Client.Close(), c.side.Close())
}

// positionClient remembers what GetOffset answered. sarama resolves "newest" and
// "oldest" inside ConsumePartition and tells nobody the outcome; asking the broker
// once more, later, may answer beyond records that were fetched already.
type positionClient struct {
	sarama.Client

	mu      sync.Mutex
	offsets map[positionKey]int64
}

type positionKey struct {
	topic     string
	partition int32
	which     int64 // sarama.OffsetNewest or OffsetOldest
}

func (c *positionClient) GetOffset(topic string, partition int32, which int64) (int64, error) {
	offset, err := c.Client.GetOffset(topic, partition, which)
	if err == nil {
		c.mu.Lock()
		c.offsets[positionKey{topic, partition, which}] = offset
		c.mu.Unlock()
	}
	return offset, err
}

// position answers what sarama resolved for a partition it consumes.
func (c *positionClient) position(topic string, partition int32, which int64) (int64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	offset, ok := c.offsets[positionKey{topic, partition, which}]
	return offset, ok
}

// dialer makes a subscription's connections, so that all of them can be cut
// when its time to close is up: sarama holds a broker's lock during a request,
// and so cannot be told to stop waiting for an answer.
type dialer struct {
	inner interface {
		Dial(network, addr string) (net.Conn, error)
	}
	ctx context.Context
	end context.CancelFunc

	mu      sync.Mutex
	all     map[*conn]struct{}
	dialing int
	quiet   chan struct{} // closed once cut, when nothing dials any more
}

// dialPatience is how long Cut waits for a way to connect that cannot be interrupted.
const dialPatience = time.Second

type conn struct {
	net.Conn
	d *dialer
}

// newDialer puts itself before the configurations' own way to connect.
func newDialer(cfg, side *sarama.Config) *dialer {
	d := &dialer{all: map[*conn]struct{}{}, quiet: make(chan struct{})}
	d.ctx, d.end = context.WithCancel(context.Background())
	if cfg.Net.Proxy.Enable {
		d.inner = cfg.Net.Proxy.Dialer
	} else {
		d.inner = &net.Dialer{Timeout: cfg.Net.DialTimeout, KeepAlive: cfg.Net.KeepAlive, LocalAddr: cfg.Net.LocalAddr}
	}
	for _, cfg := range []*sarama.Config{cfg, side} {
		cfg.Net.Proxy.Enable = true
		cfg.Net.Proxy.Dialer = d
	}
	return d
}

func (d *dialer) Dial(network, addr string) (net.Conn, error) {
	d.mu.Lock()
	if err := d.ctx.Err(); err != nil {
		d.mu.Unlock()
		return nil, err
	}
	d.dialing++
	d.mu.Unlock()

	var inner net.Conn
	var err error
	if cd, ok := d.inner.(proxy.ContextDialer); ok {
		inner, err = cd.DialContext(d.ctx, network, addr)
	} else {
		inner, err = d.inner.Dial(network, addr)
	}

	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.dialed()
	if err == nil && d.ctx.Err() != nil { // cut meanwhile
		err = d.ctx.Err()
		_ = inner.Close()
	}
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, d: d}
	d.all[c] = struct{}{}
	return c, nil
}

func (d *dialer) dialed() {
	if d.dialing--; d.dialing == 0 && d.ctx.Err() != nil {
		close(d.quiet) // nothing dials again
	}
}

func (c *conn) Close() error {
	c.d.mu.Lock()
	delete(c.d.all, c)
	c.d.mu.Unlock()
	return c.Conn.Close()
}

// Cut ends every connection, makes no more, and waits for those being made.
func (d *dialer) Cut() {
	d.mu.Lock()
	if d.ctx.Err() == nil {
		d.end()
		if d.dialing == 0 {
			close(d.quiet)
		}
	}
	all := make([]*conn, 0, len(d.all))
	for c := range d.all {
		all = append(all, c)
	}
	d.mu.Unlock()
	for _, c := range all {
		_ = c.Conn.Close()
	}
	timer := time.NewTimer(dialPatience)
	defer timer.Stop()
	select {
	case <-d.quiet:
	case <-timer.C:
	}
}
