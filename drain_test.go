package ackpolicy_test

import (
	"fmt"
	"slices"
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

// A handler that waits for a commit keeps its lane: no record behind it is handed out.
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

// What waits for its key when the drain begins is left to the next owner, and only that: what is settled behind it has its mark.
func TestDrainHandsNothingOut(t *testing.T) {
	t.Parallel()
	for name, mw := range map[string]message.HandlerMiddleware{
		"NackOnError": ackpolicy.NackOnError.Middleware, "ConfirmFirst": confirmFirst,
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
			s := consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == 0 { // holds record 1, of the same key
					return until(msg.Context(), d.Draining())
				}
				return nil
			}, mw)
			await(t, "the ack of record 2", b)
			s.stop()
			wantCommitted(t, group, topic, 0, 1)
			wantOnce(t, s, "0#1", "2#1")

			s = consume(t, config(group, ordering(ackpolicy.OrderByKey, 2)), topic,
				func(*message.Message, *ackpolicy.Delivery) error { return nil }, mw)
			waitCommitted(t, group, topic, 0, 3)
			s.stop()
			s.journal.want(t, "1#1")
		})
	}
}

// A drain waits for no nacked record. The next owner delivers it when it is due, with the next attempt, and nothing else again.
func TestDrainDoesNotWaitForNackedRecords(t *testing.T) {
	t.Parallel()
	for name, order := range map[string]change{
		"key": ordering(ackpolicy.OrderByKey, 4), "unordered": ordering(ackpolicy.Unordered, 4),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, keyed("a", "b", "a", "c")...)
			others := make(chan struct{})
			cfg := config(group, order, drainTimeout(time.Minute))
			cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
				if e.Offset == 3 {
					close(others)
				}
			}
			handler := func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Offset() == 0 && d.Attempt() < 3 {
					return ackpolicy.NackAfter(2 * time.Second)
				}
				return nil
			}
			s := consume(t, cfg, topic, handler, ackpolicy.NackOnError.Middleware)
			await(t, "the last record", others)
			eventually(t, "the nack", func() bool { return s.journal.find(0, 1) != nil && s.journal.find(0, 1).Status() == ackpolicy.Nacked })
			began := time.Now()
			s.stop()
			t.Logf("stopped in %v", time.Since(began))
			wantCommitted(t, group, topic, 0, 0)
			names := s.journal.names()
			cfg.Hooks.Settled = nil
			s = consume(t, cfg, topic, handler, ackpolicy.NackOnError.Middleware)
			waitCommitted(t, group, topic, 0, 4)
			s.stop()
			names = append(names, s.journal.names()...)
			slices.Sort(names)
			if want := []string{"0#1", "0#2", "0#3", "1#1", "2#1", "3#1"}; !slices.Equal(names, want) {
				t.Errorf("deliveries %v, want %v", names, want)
			}
		})
	}
}

// One that fails each time does not hold the drain.
func TestDrainLeavesPoison(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	s := consume(t, config(group, ordering(ackpolicy.Unordered, 4), drainTimeout(2*time.Minute)), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 0 {
			return ackpolicy.NackAfter(20 * time.Millisecond)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	eventually(t, "an acked record", func() bool {
		return slices.ContainsFunc(s.journal.all(), func(d *ackpolicy.Delivery) bool { return d.Status() == ackpolicy.Acked })
	})
	began := time.Now()
	s.stop()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the drain took %v", took)
	}
	wantCommitted(t, group, topic, 0, 0)
}

// wantOnce asserts which deliveries there were, in whatever order.
func wantOnce(t *testing.T, s *service, want ...string) {
	t.Helper()
	got := s.journal.names()
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("deliveries: got %v, want %v", got, want)
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
