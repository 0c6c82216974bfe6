package ackpolicy_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// With the broker gone, or silent, Close still ends within DrainTimeout + 5 s, and
// what it could not commit is told.
func TestCloseWithoutABroker(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*brokertest.Network){
		"refused": func(n *brokertest.Network) { n.Cut() },
		"silent":  func(n *brokertest.Network) { n.Delay(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 2, numbered(5)...)
			network := &brokertest.Network{}
			cfg := config(group, drainTimeout(300*time.Millisecond))
			cfg.CommitInterval = time.Hour // the last commit is all there is
			network.Use(cfg.Kafka.OverwriteSaramaConfig)
			released := make(chan ackpolicy.RevokedEvent, 2)
			cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released <- e }
			assigned := make(chan ackpolicy.AssignedEvent, 2)
			cfg.Hooks.Assigned = func(e ackpolicy.AssignedEvent) { assigned <- e }
			s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, 5)
			for range 2 {
				await(t, "a partition", assigned)
			}
			fail(network)
			wantClosed(t, s.stop, 300*time.Millisecond)
			events := map[int32]ackpolicy.RevokedEvent{}
			for range 2 {
				e := await(t, "the end of a partition", released)
				events[e.Partition] = e
			}
			if e := events[0]; e.Err == nil || e.Offset != 5 {
				t.Errorf("partition 0 was released as %+v, want offset 5 and the commit's error", e)
			}
			if len(s.log.at("error")) == 0 {
				t.Error("nothing was logged at error level")
			}
			network.Heal()
			if n := network.OpenConns(); n != 0 {
				t.Errorf("%d connections left", n)
			}
		})
	}
}

// Handlers that end at once leave their time to the last commit: a coordinator that takes none for a while, since the
// group waits for a member that is gone, does not make the next owner deliver again.
func TestCloseCommitsForAsLongAsItMay(t *testing.T) {
	t.Parallel()
	const refused = 9 // some 4 s
	broker := brokertest.NewFake(t)
	topic, at := fakeTopic(t, broker, numbered(5)...)
	group := brokertest.Group(t)
	cfg := config(group, at, drainTimeout(5*time.Second))
	cfg.CommitInterval = time.Hour // the last commit is all there is
	var released ackpolicy.RevokedEvent
	cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released = e }
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, 5)
	fault := refuseCommits(broker, refused)
	s.stop()
	stored, err := brokertest.Committed(broker.Addrs(), group, topic, 0)
	if err != nil || stored != 5 || released.Err != nil || fault.Hits() != refused {
		t.Errorf("stored: %d, %v; released as %+v after %d refusals", stored, err, released, fault.Hits())
	}
}

// Close ends in time though the position that the group starts from was never stored.
func TestCloseBeforeTheStartIsStored(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := fakeTopic(t, broker, numbered(1)...)
	refused := broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.GroupAuthorizationFailed, Count: -1})
	s := consume(t, config(brokertest.Group(t), at, drainTimeout(200*time.Millisecond)), topic,
		func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
	eventually(t, "a refused commit", func() bool { return refused.Hits() > 0 })
	wantClosed(t, s.stop, 200*time.Millisecond)
	s.journal.want(t) // nothing was handed out: the next owner might start behind it
}

// Close interrupts a Subscribe that waits for a broker which accepts and says nothing.
func TestCloseDuringSubscribe(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
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
	cfg := config(brokertest.Group(t), drainTimeout(200*time.Millisecond))
	cfg.Kafka.Brokers = []string{l.Addr().String()}
	sub := newSubscriber(t, cfg, newLog(t))
	subscribed := make(chan error, 1)
	go func() {
		_, err := sub.Subscribe(context.Background(), "topic")
		subscribed <- err
	}()
	conn := await(t, "the connection", accepted)
	defer conn.Close()
	wantClosed(t, func() { check(t, sub.Close()) }, 200*time.Millisecond)
	if err := await(t, "Subscribe's end", subscribed); err == nil {
		t.Error("Subscribe succeeded")
	}
}

// A revocation takes no longer than DrainTimeout for handlers that do not end.
func TestRevocationKeepsDrainTimeout(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 2)
	produce(t, topic, 0, numbered(1)...)
	produce(t, topic, 1, numbered(1)...)
	cfg := config(group, drainTimeout(300*time.Millisecond))
	release := make(chan struct{})
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error {
		<-release // whatever its context says
		return nil
	}, ackpolicy.NackOnError.Middleware)
	d := s.journal.wait(t, 2)
	other := newSubscriber(t, cfg, newLog(t))
	out, err := other.Subscribe(context.Background(), topic)
	check(t, err)
	go func() {
		for msg := range out {
			msg.Ack()
		}
	}()
	await(t, "the drain", d.Draining())
	began := time.Now()
	eventually(t, "its end", func() bool { return d.Status() == ackpolicy.Revoked })
	if took := time.Since(began); took > 3*time.Second { // a quarter of Rebalance.Timeout is 5 s
		t.Errorf("the drain took %v", took)
	}
	close(release)
	check(t, other.Close())
	s.stop()
}

// wantClosed asserts that a Close ends within its bound. One that does not end at all fails the test, too.
func wantClosed(t *testing.T, closes func(), drain time.Duration) {
	t.Helper()
	began, closed := time.Now(), make(chan struct{})
	go func() {
		defer close(closed)
		closes()
	}()
	await(t, "the end of Close", closed)
	const busy = 2 * time.Second // what a machine with better things to do may add
	if took, promised := time.Since(began), drain+5*time.Second; took > promised+busy {
		t.Errorf("Close took %v, at most %v is promised", took, promised)
	}
}
