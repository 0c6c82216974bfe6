package memkafka

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
)

// Link is the way of one process to the cluster. It is a dialer for sarama's Net.Proxy.
type Link struct {
	cluster *Cluster
	watcher *seam.Watcher

	mu      sync.Mutex
	dead    bool
	conns   map[*connection]struct{}
	members []*member
}

var _ seam.Kafka = (*Link)(nil)

// NewLink returns the way of another process, whose Subscribers are watched.
func (c *Cluster) NewLink(w *seam.Watcher) *Link {
	return &Link{cluster: c, watcher: w, conns: map[*connection]struct{}{}}
}

// Watcher implements seam.Kafka.
func (l *Link) Watcher() *seam.Watcher { return l.watcher }

var errRefused = &net.OpError{Op: "dial", Net: "memory", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

// Dial implements the dialer.
func (l *Link) Dial(network, addr string) (net.Conn, error) {
	return l.DialContext(context.Background(), network, addr)
}

// DialContext connects to the broker.
func (l *Link) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	c := &connection{Conn: near, link: l}
	l.mu.Lock()
	if l.dead {
		l.mu.Unlock()
		return nil, errRefused
	}
	l.conns[c] = struct{}{}
	l.mu.Unlock()
	select {
	case l.cluster.conns <- connection{Conn: far, link: l}:
		return c, nil
	case <-ctx.Done():
	case <-l.cluster.closed:
	}
	_ = c.Close()
	return nil, errRefused
}

// Kill is the end of the process: its connections end, and its members are no longer in their
// groups, as after the session timeout.
func (l *Link) Kill() {
	l.mu.Lock()
	l.dead = true
	members := l.members
	var conns []*connection
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, m := range members {
		m.leave(errDead)
	}
	for _, c := range conns {
		_ = c.Close()
	}
}

// connection is one end of a connection.
type connection struct {
	net.Conn
	link *Link
}

func (c *connection) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.ErrClosedPipe {
		err = net.ErrClosed
	}
	return n, err
}

func (c *connection) Close() error {
	c.link.mu.Lock()
	delete(c.link.conns, c)
	c.link.mu.Unlock()
	return c.Conn.Close()
}
