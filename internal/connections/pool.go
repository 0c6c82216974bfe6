// Package connections shares connections to Kafka among subscriptions: the clients that know the
// cluster's metadata, and the connections of short requests.
package connections

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/dial"
)

const (
	// patience is how long a broker may take to send metadata: other users of the client wait meanwhile.
	patience = 10 * time.Second
	// bundles is how many connections to a broker carry the short requests of all users: commits,
	// offsets, records that are read again. A connection has one request under way at a time, and a
	// busy subscription commits 20 times per second, for 5 ms each.
	bundles = 8
)

// Pool has clients that are opened for the first user and closed after the last one. The zero value
// is not usable.
type Pool struct {
	turn chan struct{} // held by whoever opens connections

	mu   sync.Mutex
	open *opened // nil without users that have not cut theirs
}

// New returns a pool without connections.
func New() *Pool { return &Pool{turn: make(chan struct{}, 1)} }

// Config says what to connect to. The configurations are copied.
type Config struct {
	Brokers []string
	Clients []*sarama.Config // of the shared clients
	Short   *sarama.Config   // of the connections for short requests; nil: there are none
}

// opened is a pool's connections.
type opened struct {
	clients []sarama.Client
	dialer  *dial.Dialer     // of the clients
	bundles [bundles]*bundle // nil: not used yet; guarded by Pool.mu, as what follows
	users   int              // that have not released their share
	live    int              // of them, those that have not cut it
}

// bundle is a set of connections for short requests.
type bundle struct {
	dialer  *dial.Dialer
	brokers *brokers
	users   int
}

// Join returns a share of the pool's connections, which the first caller's configuration opens. The end
// of ctx interrupts that.
func (p *Pool) Join(ctx context.Context, cfg Config) (*Lease, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if l := p.share(cfg.Short); l != nil {
		return l, nil
	}
	o, err := open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.open = o
	p.mu.Unlock()
	return p.share(cfg.Short), nil
}

// share returns a share of the connections, or nil if there are none.
func (p *Pool) share(short *sarama.Config) *Lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		return nil
	}
	p.open.users++
	p.open.live++
	return p.open.lease(p, short)
}

func open(ctx context.Context, cfg Config) (o *opened, err error) {
	o = &opened{}
	var configs []*sarama.Config
	for _, c := range cfg.Clients {
		own := *c
		own.Net.ReadTimeout, own.Net.DialTimeout = min(own.Net.ReadTimeout, patience), min(own.Net.DialTimeout, patience)
		configs = append(configs, &own)
	}
	o.dialer = dial.New(configs[0], configs[1:]...)
	stop := context.AfterFunc(ctx, o.dialer.Cut)
	for _, c := range configs {
		var client sarama.Client
		if client, err = sarama.NewClient(cfg.Brokers, c); err != nil {
			err = o.dialer.Explain(c, err)
			break
		}
		o.clients = append(o.clients, client)
		o.dialer.Worked()
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

// lease returns a share whose short requests go over the bundle with the fewest users.
func (o *opened) lease(p *Pool, config *sarama.Config) *Lease {
	l := &Lease{pool: p, of: o}
	if config == nil {
		return l
	}
	least := 0
	for i := range o.bundles {
		if o.bundles[i] == nil {
			o.bundles[i] = newBundle(config)
		}
		if o.bundles[i].users < o.bundles[least].users {
			least = i
		}
	}
	l.bundle = o.bundles[least]
	l.bundle.users++
	own := *config
	own.Net.Proxy.Enable, own.Net.Proxy.Dialer = true, l.bundle.dialer
	l.short = &Client{Client: o.clients[0], config: &own, brokers: l.bundle.brokers, shared: true}
	return l
}

func newBundle(config *sarama.Config) *bundle {
	own := *config
	l := &bundle{dialer: dial.New(&own)}
	l.dialer.Once = true
	l.brokers = newBrokers(&own)
	return l
}

// cut takes note that a user sends nothing more. If that holds for all, the connections are cut.
func (p *Pool) cut(l *Lease) {
	p.mu.Lock()
	l.of.live--
	last := l.of.live == 0
	if last && p.open == l.of {
		p.open = nil
	}
	p.mu.Unlock()
	if last {
		l.of.cut()
	}
}

// leave closes the connections after the last user.
func (p *Pool) leave(l *Lease) error {
	p.mu.Lock()
	if l.bundle != nil {
		l.bundle.users--
	}
	l.of.users--
	last := l.of.users == 0
	p.mu.Unlock()
	if !last {
		return nil
	}
	return l.of.close()
}

// cut closes all connections for good.
func (o *opened) cut() {
	var cuts sync.WaitGroup
	for _, b := range o.bundles {
		if b != nil {
			cuts.Go(b.dialer.Cut)
		}
	}
	o.dialer.Cut()
	cuts.Wait()
}

func (o *opened) close() error {
	o.cut()
	for _, b := range o.bundles {
		if b != nil {
			b.brokers.close()
		}
	}
	var errs []error
	for _, c := range o.clients {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
