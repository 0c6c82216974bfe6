package connections_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// cost is what a Router with many handlers takes once each of them has had a message.
type cost struct {
	connections int
	goroutines  int
	bytes       int64         // of heap and stacks
	subscribed  time.Duration // until the Router runs
	started     time.Duration // until each handler had a message
}

func (c cost) String() string {
	return fmt.Sprintf("%d connections, %d goroutines, %d kB, running after %v, all handlers after %v",
		c.connections, c.goroutines, c.bytes>>10, c.subscribed.Round(time.Millisecond), c.started.Round(time.Millisecond))
}

// A Router with forty handlers on one Subscriber takes hardly more connections, memory and time to start than the
// same Router on one of watermill-kafka's.
func TestFortyHandlersOnOneSubscriber(t *testing.T) {
	const handlers, others = 40, 40 // of other applications
	var topics []string
	for range handlers {
		topics = append(topics, testkit.NewTopic(t, 1, testkit.Numbered(1)...))
	}
	for range others {
		testkit.NewTopic(t, 6)
	}
	stock := least(func() cost {
		return measure(t, topics, func(c kafka.SubscriberConfig) (message.Subscriber, error) {
			return kafka.NewSubscriber(c, watermill.NopLogger{})
		})
	})
	ours := least(func() cost {
		return measure(t, topics, func(c kafka.SubscriberConfig) (message.Subscriber, error) {
			return ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{Kafka: c}, nil)
		})
	})
	t.Logf("watermill-kafka: %v", stock)
	t.Logf("ours:            %v", ours)
	if most := stock.connections * 6 / 5; ours.connections > most {
		t.Errorf("%d connections, want at most %d", ours.connections, most)
	}
	if most := stock.bytes * 6 / 5; ours.bytes > most && testkit.Slower == 1 {
		t.Errorf("%d kB, want at most %d", ours.bytes>>10, most>>10)
	}
	const busy = time.Second // what others on the machine may take
	if most := stock.subscribed*6/5 + busy; ours.subscribed > most {
		t.Errorf("the Router runs after %v, want at most %v", ours.subscribed, most)
	}
	if most := stock.started*6/5 + busy; ours.started > most {
		t.Errorf("all handlers run after %v, want at most %v", ours.started, most)
	}
}

// counter counts open connections, at no cost that would count.
type counter struct{ open atomic.Int32 }

type counted struct {
	net.Conn
	close func() error
}

func (c *counted) Close() error { return c.close() }

// Dial implements sarama's proxy dialer.
func (n *counter) Dial(network, addr string) (net.Conn, error) {
	c, err := net.Dial(network, addr)
	if err != nil {
		return nil, err
	}
	n.open.Add(1)
	return &counted{c, sync.OnceValue(func() error {
		defer n.open.Add(-1)
		return c.Close()
	})}, nil
}

// least returns the smallest figures of three runs.
func least(run func() cost) cost {
	all := run()
	for range 2 {
		c := run()
		all = cost{
			min(all.connections, c.connections), min(all.goroutines, c.goroutines), min(all.bytes, c.bytes),
			min(all.subscribed, c.subscribed), min(all.started, c.started),
		}
	}
	return all
}

// measure runs a Router with a handler per topic, all on one Subscriber.
func measure(t *testing.T, topics []string, subscriber func(kafka.SubscriberConfig) (message.Subscriber, error)) (c cost) {
	network := &counter{}
	config := testkit.Config(brokertest.Group(t)).Kafka
	config.Unmarshaler = kafka.DefaultMarshaler{}
	config.OverwriteSaramaConfig.Net.Proxy.Enable, config.OverwriteSaramaConfig.Net.Proxy.Dialer = true, network
	goroutines, bytes := inUse()
	began := time.Now()
	sub, err := subscriber(config)
	testkit.Check(t, err)
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	testkit.Check(t, err)
	var first atomic.Int32 // handlers that had a message
	all := make(chan struct{})
	for _, topic := range topics {
		var had atomic.Bool
		router.AddConsumerHandler(topic, topic, sub, func(*message.Message) error {
			if !had.Swap(true) && int(first.Add(1)) == len(topics) {
				c.started = time.Since(began)
				close(all)
			}
			return nil
		})
	}
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	testkit.Await(t, "the Router", router.Running())
	c.subscribed = time.Since(began)
	testkit.Await(t, "all handlers", all)
	c.connections = int(network.open.Load())
	after, bytesAfter := inUse()
	c.goroutines, c.bytes = after-goroutines, bytesAfter-bytes
	testkit.Check(t, router.Close())
	testkit.Check(t, testkit.Await(t, "the Router's end", ended))
	testkit.Eventually(t, "the end of all connections", func() bool { return int(network.open.Load()) == 0 })
	return c
}

// inUse returns how many goroutines there are, and how much memory they hold.
func inUse() (goroutines int, bytes int64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return runtime.NumGoroutine(), int64(m.HeapAlloc + m.StackInuse)
}
