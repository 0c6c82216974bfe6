package simulation

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// network connects members with brokers, in memory and on the bubble's clock.
type network struct {
	mu        sync.Mutex
	dice      *rand.Rand
	listeners map[string]*listener
}

func newNetwork(dice *rand.Rand) *network {
	return &network{dice: dice, listeners: map[string]*listener{}}
}

// roll returns whether something of a probability happens.
func (n *network) roll(p float64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dice.Float64() < p
}

type address string

func (address) Network() string  { return "memory" }
func (a address) String() string { return string(a) }

type listener struct {
	n      *network
	addr   address
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// listen is for kfake.
func (n *network) listen(_, addr string) (net.Listener, error) {
	l := &listener{n: n, addr: address(addr), conns: make(chan net.Conn, 64), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[addr] = l
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// quick is how long bytes are under way.
const quick = 200 * time.Microsecond

// link is a member's way to the brokers. It is sarama's proxy dialer.
type link struct {
	n *network

	mu    sync.Mutex
	cut   bool
	dead  bool // the process has gone
	there time.Duration
	back  time.Duration
	loses loss
	conns map[*conn]struct{}
}

// loss says which requests lose their connection.
type loss struct {
	key   int16
	odds  float64
	after bool // the broker has the request
}

const nothing = -1

func (n *network) link() *link {
	return &link{n: n, conns: map[*conn]struct{}{}, there: quick, back: quick, loses: loss{key: nothing}}
}

var errRefused = &net.OpError{Op: "dial", Net: "memory", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

// Dial connects, or is refused while the link is cut.
func (l *link) Dial(_, addr string) (net.Conn, error) {
	l.n.mu.Lock()
	at := l.n.listeners[addr]
	l.n.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if at == nil || l.cut || l.dead {
		return nil, errRefused
	}
	c := &conn{link: l, out: newStream(), in: newStream(), addr: at.addr}
	select {
	case <-at.closed:
		return nil, errRefused
	case at.conns <- &brokerConn{c}:
	default:
		return nil, errRefused
	}
	l.conns[c] = struct{}{}
	return c, nil
}

// slow sets how long requests and responses take from now on, also on connections that are open.
func (l *link) slow(there, back time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.there, l.back = there, back
}

func (l *link) delays() (there, back time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.there, l.back
}

// lose makes requests lose their connection.
func (l *link) lose(what loss) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loses = what
}

// lost reports whether a request loses its connection, and whether the broker has it.
func (l *link) lost(request []byte) (now, after bool) {
	l.mu.Lock()
	what := l.loses
	l.mu.Unlock()
	if len(request) < 6 || int16(binary.BigEndian.Uint16(request[4:])) != what.key {
		return false, false
	}
	return l.n.roll(what.odds), what.after
}

// drop ends all connections, as a firewall that loses its state.
func (l *link) drop() {
	l.mu.Lock()
	conns := l.conns
	l.conns = map[*conn]struct{}{}
	l.mu.Unlock()
	for c := range conns {
		c.reset()
	}
}

// setCut ends all connections and refuses new ones, until it is called with false.
func (l *link) setCut(on bool) {
	l.mu.Lock()
	l.cut = on
	l.mu.Unlock()
	if on {
		l.drop()
	}
}

// kill is the end of the process.
func (l *link) kill() {
	l.mu.Lock()
	l.dead = true
	l.mu.Unlock()
	l.drop()
}

func (l *link) isDead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

// conn is the member's end of a connection.
type conn struct {
	link    *link
	addr    address
	out, in *stream // to and from the broker
	mu      sync.Mutex
	hard    bool // drop what is under way at Close
}

func (c *conn) Read(b []byte) (int, error)        { return c.in.read(b) }
func (c *conn) LocalAddr() net.Addr               { return address("member:1") }
func (c *conn) RemoteAddr() net.Addr              { return c.addr }
func (c *conn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }
func (c *conn) SetWriteDeadline(time.Time) error  { return nil } // writes never block
func (c *conn) SetReadDeadline(t time.Time) error { c.in.setDeadline(t); return nil }

// Write writes one request: sarama makes one call for each.
func (c *conn) Write(b []byte) (int, error) {
	now, after := c.link.lost(b)
	if now && !after {
		c.reset()
	}
	there, _ := c.link.delays()
	n, err := c.out.write(b, there)
	if now && after {
		c.end(false, syscall.ECONNRESET)
	}
	return n, err
}

// SetLinger has Close drop what has not arrived yet. What the broker has read, and not handled, it
// cannot take back: which it is is the dice's to say.
func (c *conn) SetLinger(int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hard = true
	return nil
}

func (c *conn) Close() error {
	c.mu.Lock()
	hard := c.hard
	c.mu.Unlock()
	c.link.mu.Lock()
	delete(c.link.conns, c)
	c.link.mu.Unlock()
	c.end(hard, net.ErrClosed)
	return nil
}

// reset ends the connection from outside.
func (c *conn) reset() { c.end(true, syscall.ECONNRESET) }

func (c *conn) end(hard bool, err error) {
	c.in.abort(err)
	if hard && c.link.n.roll(0.5) {
		c.out.abort(syscall.ECONNRESET)
	} else {
		c.out.finish()
	}
}

// brokerConn is the broker's end.
type brokerConn struct{ *conn }

func (b *brokerConn) Read(p []byte) (int, error)      { return b.out.read(p) }
func (b *brokerConn) LocalAddr() net.Addr             { return b.addr }
func (b *brokerConn) RemoteAddr() net.Addr            { return address("member:1") }
func (b *brokerConn) SetDeadline(time.Time) error     { return nil }
func (b *brokerConn) SetReadDeadline(time.Time) error { return nil }
func (b *brokerConn) SetLinger(int) error             { return nil }
func (b *brokerConn) Write(p []byte) (int, error) {
	_, back := b.link.delays()
	return b.in.write(p, back)
}

func (b *brokerConn) Close() error {
	b.out.abort(net.ErrClosed)
	b.in.finish()
	return nil
}

// stream is one direction of a connection: bytes arrive in order, after their delay.
type stream struct {
	mu       sync.Mutex
	parts    []part
	done     bool  // nothing more is written
	err      error // of whoever reads
	deadline time.Time
	wake     chan struct{}
}

type part struct {
	data []byte
	at   time.Time
}

func newStream() *stream { return &stream{wake: make(chan struct{}, 1)} }

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *stream) write(b []byte, delay time.Duration) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.done {
		return 0, syscall.EPIPE
	}
	at := time.Now().Add(delay)
	if n := len(s.parts); n > 0 && s.parts[n-1].at.After(at) {
		at = s.parts[n-1].at
	}
	s.parts = append(s.parts, part{append([]byte(nil), b...), at})
	s.signal()
	return len(b), nil
}

// stray is how long what was sent may be under way after its connection has ended. That it is not
// longer is what the library counts on, see settleAfter in internal/commit.
const stray = 900 * time.Millisecond

// finish lets what is under way arrive.
func (s *stream) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
	for i, latest := 0, time.Now().Add(stray); i < len(s.parts); i++ {
		if s.parts[i].at.After(latest) {
			s.parts[i].at = latest
		}
	}
	s.signal()
}

func (s *stream) abort(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err, s.parts = err, nil
	}
	s.signal()
}

func (s *stream) setDeadline(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	s.signal()
}

// read is called by one goroutine at a time.
func (s *stream) read(b []byte) (int, error) {
	for {
		n, until, err := s.take(b)
		if n > 0 || err != nil {
			return n, err
		}
		var due <-chan time.Time
		var timer *time.Timer
		if !until.IsZero() {
			timer = time.NewTimer(time.Until(until))
			due = timer.C
		}
		select {
		case <-s.wake:
		case <-due:
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// take returns what has arrived, or until when there is nothing to look for.
func (s *stream) take(b []byte) (n int, until time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	switch {
	case s.err != nil:
		return 0, until, s.err
	case len(s.parts) > 0 && !s.parts[0].at.After(now):
		n = copy(b, s.parts[0].data)
		if s.parts[0].data = s.parts[0].data[n:]; len(s.parts[0].data) == 0 {
			s.parts = s.parts[1:]
		}
		return n, until, nil
	case len(s.parts) == 0 && s.done:
		return 0, until, io.EOF
	case !s.deadline.IsZero() && !s.deadline.After(now):
		return 0, until, os.ErrDeadlineExceeded
	}
	until = s.deadline
	if len(s.parts) > 0 && (until.IsZero() || s.parts[0].at.Before(until)) {
		until = s.parts[0].at
	}
	return 0, until, nil
}
