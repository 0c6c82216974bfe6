package brokertest

import (
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/IBM/sarama"
)

// Network is the network between a client and its brokers, which a test can cut and slow down. The zero value works.
type Network struct {
	mu    sync.Mutex
	conns map[*conn]struct{}
	cut   bool
	delay time.Duration
	dials int
}

// Use makes the clients that have this configuration connect through the network.
func (n *Network) Use(cfg *sarama.Config) {
	cfg.Net.Proxy.Enable = true
	cfg.Net.Proxy.Dialer = n
}

// Dial connects, or is refused while the network is cut.
func (n *Network) Dial(network, addr string) (net.Conn, error) {
	n.mu.Lock()
	n.dials++
	n.mu.Unlock()
	if n.isCut() {
		return nil, refused(network)
	}
	inner, err := (&net.Dialer{Timeout: 10 * time.Second}).Dial(network, addr)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, network: n, out: make(chan packet, 1024), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut {
		_ = inner.Close()
		return nil, refused(network)
	}
	if n.conns == nil {
		n.conns = map[*conn]struct{}{}
	}
	n.conns[c] = struct{}{}
	go c.deliver()
	return c, nil
}

func refused(network string) error {
	return &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

// Cut closes all connections, and refuses new ones until Heal.
func (n *Network) Cut() {
	n.mu.Lock()
	n.cut = true
	conns := make([]*conn, 0, len(n.conns))
	for c := range n.conns {
		conns = append(conns, c)
	}
	n.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// Heal ends Cut and Delay.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut, n.delay = false, 0
}

// Delay makes what clients send arrive later by d, in order, what is under way included. A long delay is a stall:
// writes continue succeeding, and no response comes.
func (n *Network) Delay(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = d
}

// OpenConns returns how many connections are open.
func (n *Network) OpenConns() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns)
}

// Dials returns how often a client tried to connect.
func (n *Network) Dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

func (n *Network) isCut() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut
}

// due returns how long data that was sent at that time still has to wait.
func (n *Network) due(sent time.Time) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.delay == 0 {
		return 0
	}
	return time.Until(sent.Add(n.delay))
}

// conn hands its writes to a goroutine, so that a delay concerns the data and not the writer.
type conn struct {
	net.Conn
	network *Network
	out     chan packet
	done    chan struct{}
	once    sync.Once
}

type packet struct {
	data []byte
	sent time.Time
}

func (c *conn) Write(b []byte) (int, error) {
	select {
	case <-c.done:
		return 0, net.ErrClosed
	default:
	}
	select {
	case c.out <- packet{append([]byte(nil), b...), time.Now()}:
		return len(b), nil
	case <-c.done:
		return 0, net.ErrClosed
	}
}

func (c *conn) deliver() {
	for {
		select {
		case p := <-c.out:
			if !c.wait(p.sent) {
				return
			}
			if _, err := c.Conn.Write(p.data); err != nil {
				_ = c.Close()
				return
			}
		case <-c.done:
			return
		}
	}
}

// wait sleeps in short steps, since Delay and Heal may change how long it takes.
func (c *conn) wait(sent time.Time) bool {
	for {
		left := c.network.due(sent)
		if left <= 0 {
			return true
		}
		select {
		case <-time.After(min(left, 10*time.Millisecond)):
		case <-c.done:
			return false
		}
	}
}

func (c *conn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		close(c.done)
		c.network.mu.Lock()
		delete(c.network.conns, c)
		c.network.mu.Unlock()
		err = c.Conn.Close()
	})
	return err
}
