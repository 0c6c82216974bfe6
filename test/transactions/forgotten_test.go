package transactions_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"sync/atomic"
	"testing"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A coordinator forgets the partitions of a transaction, though it has confirmed them, as one can that moves twice in a
// row: here it hears of another topic instead. Then the transaction fails, and nothing of it may be left open.
func TestForgottenPartitions(t *testing.T) {
	if !testkit.Shared.Real() {
		t.Skip("kfake takes no record of a transaction that its coordinator does not know")
	}
	t.Parallel()
	testkit.UncheckedTransactions(t)
	s := newSpec(t, 2, 300)
	f := &forgetter{topic: []byte(s.Out), other: []byte(s.Out[:len(s.Out)-1] + "-")}
	testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), string(f.other), 2))
	s.Change = func(cfg *ackpolicy.SubscriberConfig) {
		proxy := &cfg.Kafka.OverwriteSaramaConfig.Net.Proxy
		proxy.Enable, proxy.Dialer = true, f
	}
	service := s.start(t)
	s.waitSettled(t)
	service.Stop()
	s.judge(t, 2, 300)
	if !f.failed.Load() {
		t.Error("no transaction failed whose partitions were forgotten")
	}
}

// forgetter is a way to connect that names another topic to the coordinator than the first transaction writes to, which
// then fails.
type forgetter struct {
	topic, other      []byte // of the same length
	forgotten, failed atomic.Bool
}

func (f *forgetter) Dial(network, addr string) (net.Conn, error) {
	conn, err := net.Dial(network, addr)
	if err != nil {
		return nil, err
	}
	return &forgetConn{conn, f}, nil
}

type forgetConn struct {
	net.Conn
	f *forgetter
}

func (c *forgetConn) Write(b []byte) (int, error) {
	if len(b) < 6 {
		return c.Conn.Write(b)
	}
	switch key := int16(binary.BigEndian.Uint16(b[4:])); {
	case c.f.failed.Load():
	case key == 24 && bytes.Contains(b, c.f.topic):
		c.f.forgotten.Store(true)
		b = bytes.ReplaceAll(b, c.f.topic, c.f.other)
	case key == 28 && c.f.forgotten.Load():
		_ = c.Conn.Close()
		return 0, errCut
	case key == 22:
		c.f.failed.Store(c.f.forgotten.Load())
	}
	return c.Conn.Write(b)
}

func (c *forgetConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	copy(b, bytes.ReplaceAll(b[:n], c.f.other, c.f.topic))
	return n, err
}
