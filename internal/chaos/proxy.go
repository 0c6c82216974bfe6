package chaos

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Proxy is a member's way to the brokers: a listener in the test's process, so that the test can cut and slow down what
// another process sends. A client says in a first line which broker it wants, so addresses need no rewriting.
type Proxy struct {
	brokertest.Network
	listener net.Listener
	conns    sync.WaitGroup
}

// StartProxy listens.
func StartProxy() (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: listener}
	p.conns.Go(p.accept)
	return p, nil
}

// Addr is where it listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Close ends all connections.
func (p *Proxy) Close() error {
	err := p.listener.Close()
	p.Cut()
	p.conns.Wait()
	return err
}

func (p *Proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.conns.Go(func() { p.serve(conn) })
	}
}

func (p *Proxy) serve(conn net.Conn) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	addr, err := reader.ReadString('\n')
	if err != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	broker, err := p.Dial("tcp", addr[:len(addr)-1])
	if err != nil {
		return
	}
	defer broker.Close()
	var responses sync.WaitGroup
	responses.Go(func() {
		_, _ = io.Copy(conn, broker)
		_ = conn.Close()
	})
	_, _ = io.Copy(broker, reader)
	_ = broker.Close()
	responses.Wait()
}

// proxied dials through the proxy at that address.
type proxied string

func (p proxied) Dial(network, addr string) (net.Conn, error) {
	conn, err := net.DialTimeout(network, string(p), 10*time.Second)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(conn, addr); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}
