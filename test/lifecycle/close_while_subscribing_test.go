package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Close interrupts a Subscribe that waits for a broker which accepts and says nothing.
func TestCloseDuringSubscribe(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Check(t, err)
	defer l.Close()
	accepted := make(chan net.Conn, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	cfg := testkit.Config(brokertest.Group(t), testkit.DrainTimeout(200*time.Millisecond))
	cfg.Kafka.Brokers = []string{l.Addr().String()}
	sub := testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
	subscribed := make(chan error, 1)
	go func() {
		_, err := sub.Subscribe(context.Background(), "topic")
		subscribed <- err
	}()
	conn := testkit.Await(t, "the connection", accepted)
	defer conn.Close()
	wantClosed(t, func() { testkit.Check(t, sub.Close()) }, 200*time.Millisecond)
	if err := testkit.Await(t, "Subscribe's end", subscribed); err == nil || !strings.Contains(err.Error(), "subscriber closed") {
		t.Error("Subscribe:", err)
	}
}

// Close interrupts a Subscribe whose dead letter topic is just being connected.
func TestCloseWhileTheLettersConnect(t *testing.T) {
	t.Parallel()
	addr, accepted := silent(t)
	cfg := testkit.Config(brokertest.Group(t), testkit.DrainTimeout(200*time.Millisecond))
	cfg.DeadLetter = ackpolicy.DeadLetterTopic{Brokers: []string{addr}, Create: &sarama.TopicDetail{}}
	sub := testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
	topic := testkit.NewTopic(t, 1)
	subscribed := make(chan error, 1)
	go func() {
		_, err := sub.Subscribe(context.Background(), topic)
		subscribed <- err
	}()
	testkit.Await(t, "the connection", accepted)
	wantClosed(t, func() { testkit.Check(t, sub.Close()) }, 200*time.Millisecond)
	if err := testkit.Await(t, "Subscribe's end", subscribed); err == nil || !strings.Contains(err.Error(), "subscriber closed") {
		t.Error("Subscribe:", err)
	}
}

// So does the end of Subscribe's own context, which the error names, and Close need not wait then.
func TestSubscribeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(c *ackpolicy.SubscriberConfig, addr string){
		"brokers": func(c *ackpolicy.SubscriberConfig, addr string) { c.Kafka.Brokers = []string{addr} },
		"letters": func(c *ackpolicy.SubscriberConfig, addr string) {
			c.DeadLetter = ackpolicy.DeadLetterTopic{Brokers: []string{addr}, Create: &sarama.TopicDetail{}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr, accepted := silent(t)
			cfg := testkit.Config(brokertest.Group(t))
			set(&cfg, addr)
			sub := testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
			topic := testkit.NewTopic(t, 1)
			ctx, cancel := context.WithCancel(context.Background())
			subscribed := make(chan error, 1)
			go func() {
				_, err := sub.Subscribe(ctx, topic)
				subscribed <- err
			}()
			testkit.Await(t, "the connection", accepted)
			began := time.Now()
			cancel()
			err := testkit.Await(t, "Subscribe's end", subscribed)
			if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "context has ended") || strings.Contains(err.Error(), "cannot connect") {
				t.Error("Subscribe:", err)
			}
			testkit.Check(t, sub.Close())
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// Close called by many, with Subscribes under way: all of them return, nothing is left, and nothing can be subscribed after.
func TestCloseAmongSubscribes(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 2, testkit.Numbered(2)...)
	for round := range 5 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			cfg := testkit.Config(brokertest.Group(t), testkit.DrainTimeout(200*time.Millisecond), testkit.DeadLetterTopic)
			sub := testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
			var all sync.WaitGroup
			for i := range 4 {
				all.Go(func() {
					out, err := sub.Subscribe(context.Background(), topic)
					if err != nil {
						return // closed
					}
					for msg := range out {
						msg.Ack()
					}
				})
				all.Go(func() {
					time.Sleep(time.Duration(round*i) * 10 * time.Millisecond)
					wantClosed(t, func() { testkit.Check(t, sub.Close()) }, 200*time.Millisecond)
				})
			}
			all.Wait()
			if _, err := sub.Subscribe(context.Background(), topic); err == nil {
				t.Error("subscribed after Close")
			}
			testkit.Check(t, sub.Close())
		})
	}
	unused := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t)), nil)
	testkit.Check(t, unused.Close())
	if _, err := unused.Subscribe(context.Background(), topic); err == nil {
		t.Error("subscribed after a Close that came before any Subscribe")
	}
}

// silent listens and says nothing.
func silent(t *testing.T) (addr string, accepted <-chan net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Check(t, err)
	conns := make(chan net.Conn, 100)
	var all []net.Conn
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all = append(all, c)
			conns <- c
		}
	}()
	t.Cleanup(func() {
		testkit.Check(t, l.Close())
		<-ended
		for _, c := range all {
			_ = c.Close()
		}
	})
	return l.Addr().String(), conns
}
