package connections

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/IBM/sarama"
	"go.uber.org/goleak"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

func TestMain(m *testing.M) {
	// sarama's metrics start one goroutine for the process and never end it.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

func pooled(network *brokertest.Network, brokers []string) Config {
	cfg := sarama.NewConfig()
	network.Use(cfg)
	return Config{Brokers: brokers, Clients: []*sarama.Config{cfg}, Short: cfg}
}

// Users have a bundle each until there are as many as bundles, and the last one closes all connections.
func TestPool(t *testing.T) {
	t.Parallel()
	broker, network, pool := brokertest.NewFake(t), &brokertest.Network{}, New()
	topic := brokertest.Topic(t)
	if err := brokertest.CreateTopic(broker.Addrs(), topic, 1); err != nil {
		t.Fatal(err)
	}
	ask := func(l *Lease) error {
		_, err := l.Short().GetOffset(topic, 0, sarama.OffsetNewest)
		return err
	}
	var leases []*Lease
	for range 2 * bundles {
		l, err := pool.Join(context.Background(), pooled(network, broker.Addrs()))
		if err != nil {
			t.Fatal(err)
		}
		if err := ask(l); err != nil {
			t.Fatal(err)
		}
		leases = append(leases, l)
	}
	if n := network.OpenConns(); n != bundles+2 { // and for metadata one to the address given, one to the broker
		t.Errorf("%d connections of %d users, want %d", n, len(leases), bundles+2)
	}
	leases[0].Cut()
	if err := ask(leases[0]); !errors.Is(err, sarama.ErrClosedClient) {
		t.Errorf("asked after Cut: %v", err)
	}
	for i, l := range leases {
		if err := errors.Join(l.Release(), l.Release()); err != nil {
			t.Error(err)
		}
		if last := leases[len(leases)-1]; i < len(leases)-1 {
			if err := ask(last); err != nil {
				t.Errorf("%d users are left: %v", len(leases)-i-1, err)
			}
		}
	}
	if n := network.OpenConns(); n != 0 {
		t.Errorf("%d connections without users", n)
	}
}

// A user that waits for a silent broker does not keep others from giving up.
func TestJoinIsInterrupted(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	pool, network := New(), &brokertest.Network{}
	gone := errors.New("gone")
	join := func() (cancel context.CancelCauseFunc, joined <-chan error) {
		ctx, cancel := context.WithCancelCause(context.Background())
		result := make(chan error, 1)
		go func() {
			_, err := pool.Join(ctx, pooled(network, []string{silent.Addr().String()}))
			result <- err
		}()
		return cancel, result
	}
	first, firstJoined := join()
	conn, err := silent.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	second, secondJoined := join()
	second(gone)
	if err := <-secondJoined; !errors.Is(err, gone) {
		t.Errorf("the second Join returned %v", err)
	}
	first(gone)
	if err := <-firstJoined; !errors.Is(err, gone) {
		t.Errorf("the first Join returned %v", err)
	}
	if n := network.OpenConns(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}
