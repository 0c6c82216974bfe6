package dial

import (
	"net"
	"testing"
	"time"

	"github.com/IBM/sarama"
)

// Break ends a connection on which a response is awaited, and no other.
func TestBreak(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := New(sarama.NewConfig())
	defer d.Cut()
	connect := func() (client, server net.Conn) {
		client, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if server, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = client.Close(), server.Close() })
		return client, server
	}
	b := make([]byte, 1)
	asks, _ := connect()
	idle, peer := connect()
	for _, c := range []net.Conn{asks, idle} {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := peer.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Read(b); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := asks.Read(b)
		ended <- err
	}()
	d.Break()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("read something")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still waits")
	}
	if _, err := idle.Write(b); err != nil {
		t.Error("the other was ended, too:", err)
	}
	connect() // and new ones can be made
}
