package ackpolicy_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// A handler that waits for a commit does not lend its lane to a record behind it.
func TestWaitingForACommitKeepsTheOrder(t *testing.T) {
	t.Parallel()
	for name, mw := range map[string]message.HandlerMiddleware{
		"AckSync": ackpolicy.Manual.Middleware, "ConfirmFirst": confirmFirst,
	} {
		for order, change := range map[string]change{
			"partition": ordering(ackpolicy.OrderByPartition, 1), "key": ordering(ackpolicy.OrderByKey, 4),
		} {
			t.Run(name+" by "+order, func(t *testing.T) {
				t.Parallel()
				broker := brokertest.NewFake(t)
				topic, at := fakeTopic(t, broker, keyed("a", "a", "a")...)
				refuseCommits(broker, 3)
				var running atomic.Int32
				s := consume(t, config(brokertest.Group(t), at, change, noInterval), topic,
					func(msg *message.Message, d *ackpolicy.Delivery) error {
						if n := running.Add(1); n > 1 {
							t.Errorf("%d: %d handlers of the lane at once", d.Offset(), n)
						}
						defer running.Add(-1)
						return d.AckSync(msg.Context())
					}, mw)
				s.journal.wait(t, 3)
				s.stop()
				s.journal.want(t, "0#1", "1#1", "2#1")
			})
		}
	}
}

// A record that waits for its key when the drain begins, below one that is settled, is still handled: left, it would bring that one with it.
func TestDrainLeavesNoHoles(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, keyed("a", "a", "b")...)
	b := make(chan struct{})
	s := consume(t, config(group, ordering(ackpolicy.OrderByKey, 2)), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		switch d.Offset() {
		case 0: // holds record 1, of the same key
			return until(msg.Context(), d.Draining())
		case 2:
			close(b)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	await(t, "record 2", b)
	s.stop()
	wantCommitted(t, group, topic, 0, 3)
}

// The same while a handler waits for a commit that cannot come before that record: a Router that closes starts no handler
// before those that run have ended, so the wait has to end first.
func TestDrainLeavesNoHolesBelowAWait(t *testing.T) {
	t.Parallel()
	for name, mw := range map[string]message.HandlerMiddleware{
		"AckSync": ackpolicy.Manual.Middleware, "ConfirmFirst": confirmFirst,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, keyed("a", "a", "b")...)
			b := make(chan struct{})
			opened := sync.OnceFunc(func() { close(b) })
			cfg := config(group, ordering(ackpolicy.OrderByKey, 2))
			cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
				if e.Offset == 2 {
					opened()
				}
			}
			var released ackpolicy.RevokedEvent
			cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released = e }
			s := consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == 0 { // holds record 1, of the same key
					if err := until(msg.Context(), d.Draining()); err != nil {
						return err
					}
				}
				return d.AckSync(msg.Context())
			}, mw)
			await(t, "the ack of record 2", b)
			s.stop()
			if released.TimedOut {
				t.Errorf("released as %+v", released)
			}
			waitCommitted(t, group, topic, 0, released.Offset)
			if name == "AckSync" {
				if names := s.journal.names(); len(names) != 3 || names[2] != "1#1" {
					t.Errorf("deliveries: got %v, want 1#1 last", names)
				}
				wantCommitted(t, group, topic, 0, 3)
			}
		})
	}
}

// A nacked record is left to the next owner, so a handler that waits for a commit past it waits in vain: that must not
// take all the time of the drain.
func TestDrainEndsWaitsBehindANackedRecord(t *testing.T) {
	t.Parallel()
	for how, rebalance := range map[string]bool{"closing": false, "rebalance": true} {
		t.Run("AckSync, "+how, func(t *testing.T) {
			t.Parallel()
			cause := ackpolicy.ErrClosing
			if rebalance {
				cause = ackpolicy.ErrRevoked
			}
			answers := make(chan error, 2)
			drainBehindANack(t, rebalance, config(brokertest.Group(t)), func(msg *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == 0 {
					return ackpolicy.NackAfter(time.Hour)
				}
				answers <- d.AckSync(msg.Context())
				return nil
			}, ackpolicy.NackOnError.Middleware)
			if err := await(t, "AckSync", answers); !errors.Is(err, cause) {
				t.Errorf("AckSync: %v, want %v", err, cause)
			}
		})
		t.Run("ConfirmFirst, "+how, func(t *testing.T) {
			t.Parallel()
			cfg := config(brokertest.Group(t))
			cfg.Kafka.Unmarshaler = refusing{func() bool { return true }} // record 0: nacked
			cfg.Backoff = func(int, error) time.Duration { return time.Hour }
			drainBehindANack(t, rebalance, cfg, func(_ *message.Message, d *ackpolicy.Delivery) error {
				t.Errorf("%s was handled, and its commit cannot have come", name(d))
				return nil
			}, confirmFirst)
		})
	}
}

// drainBehindANack ends an assignment whose record 0 waits after a nack and whose record 1 waits for a commit.
func drainBehindANack(t *testing.T, rebalance bool, cfg ackpolicy.SubscriberConfig, h handle, mw message.HandlerMiddleware) {
	group, topic := cfg.Kafka.ConsumerGroup, newTopic(t, 1, keyed("a", "b")...)
	ordering(ackpolicy.OrderByKey, 2)(&cfg)
	drainTimeout(patience / 2)(&cfg)
	nacked, acked := make(chan struct{}, 2), make(chan struct{}, 2) // the partition may come back after the rebalance
	released := make(chan ackpolicy.RevokedEvent, 2)
	cfg.Hooks.Undecodable = func(ackpolicy.UndecodableEvent) { nacked <- struct{}{} }
	cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
		if e.Offset == 0 {
			nacked <- struct{}{}
		} else {
			acked <- struct{}{}
		}
	}
	cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released <- e }
	s := consume(t, cfg, topic, h, mw)
	await(t, "the nack", nacked)
	await(t, "the ack", acked)
	if rebalance {
		consume(t, config(group), topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.Manual.Middleware)
	} else {
		s.stop()
	}
	if e := await(t, "the release", released); e.TimedOut || e.Nacked != 1 || e.Running != 0 {
		t.Errorf("released as %+v", e)
	}
}

// Cooperative: the group is a generation ahead of the session while sarama's rejoin waits to try again, 2 s by
// default, and for good once the session's context has ended meanwhile. The last commit is refused until its time is up.
func TestCloseAmidACooperativeRejoin(t *testing.T) {
	t.Parallel()
	for rounds := 1; rounds <= 2; rounds++ {
		t.Run(fmt.Sprint(rounds, " in a row"), func(t *testing.T) {
			t.Parallel()
			closeAmidRejoins(t, rounds)
		})
	}
}

func closeAmidRejoins(t *testing.T, rounds int) {
	const partitions = 2
	broker := brokertest.NewFake(t)
	group, topic := brokertest.Group(t), brokertest.Topic(t)
	check(t, brokertest.CreateTopic(broker.Addrs(), topic, partitions))
	for p := range int32(partitions) {
		_, err := brokertest.Produce(broker.Addrs(), topic, p, numbered(5)...)
		check(t, err)
	}
	member := func() *service {
		cfg := config(group, noInterval, strategy(sarama.NewBalanceStrategyCooperativeSticky()))
		cfg.Kafka.Brokers = broker.Addrs()
		return consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
	}
	first := member()
	first.journal.wait(t, 5*partitions)

	// A member's join bumps the generation, and the next one's makes the broker refuse the first one's SyncGroup, so that
	// it waits for Rebalance.Retry.Backoff before it tries again: 2 s.
	var held atomic.Int32
	gates := make(chan chan struct{}, 1)
	broker.Kfake().ControlKey(int16(kmsg.SyncGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
		held.Add(1)
		broker.Kfake().SleepControl(func() {
			gate := <-gates
			gates <- gate
			<-gate
		})
		return nil, nil, false
	})
	members := []*service{member()}
	for round := range rounds {
		gate := make(chan struct{})
		gates <- gate
		gone := func() bool { // it need not wait for the second round
			select {
			case <-first.ended:
				return true
			default:
				return false
			}
		}
		eventually(t, "members in SyncGroup", func() bool { return held.Load() >= int32(2+round) || gone() })
		members = append(members, member())
		eventually(t, "the next rebalance", func() bool {
			_, state, err := brokertest.Members(broker.Addrs(), group)
			return gone() || (err == nil && state == "PreparingRebalance")
		})
		held.Store(0)
		<-gates
		if round == 0 {
			go first.stop()
		}
		close(gate)
	}
	open := make(chan struct{})
	close(open)
	gates <- open
	await(t, "the first member's end", first.ended)

	for p := range int32(partitions) {
		stored, err := brokertest.Committed(broker.Addrs(), group, topic, p)
		check(t, err)
		if stored != 5 {
			t.Errorf("partition %d: stored %d, want 5", p, stored)
		}
	}
	for _, m := range members {
		m.stop()
	}
}
