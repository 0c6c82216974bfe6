package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// soakSpec is what a member runs: a handler under NackOnError on the first topic, one
// under Manual on the second.
type soakSpec struct {
	Brokers     []string
	Group       string
	Topics      [2]string
	Partitions  int
	Member      byte
	Seed        uint64
	Ordering    ackpolicy.Ordering
	Cooperative bool
	Session     time.Duration
	Sample      time.Duration
}

// soakMember is the process of a member. Its session is stopped and started at the
// parent's word, so that what a session leaves behind shows in the process's memory.
type soakMember struct {
	soakSpec
	events *os.File
	late   sync.WaitGroup
	idle   atomic.Int64 // goroutines after the last session
}

func soakMemberMain(text []byte) (any, error) {
	m := &soakMember{events: os.NewFile(3, "events")}
	if err := json.Unmarshal(text, &m.soakSpec); err != nil {
		return nil, err
	}
	go m.sample()
	var stop func() error
	words := bufio.NewScanner(os.Stdin)
	for words.Scan() {
		switch {
		case words.Text() == memberStart && stop == nil:
			var err error
			if stop, err = m.start(); err != nil {
				return nil, err
			}
		case words.Text() == memberStop && stop != nil:
			if err := stop(); err != nil {
				return nil, err
			}
			stop = nil
			m.idle.Store(int64(runtime.NumGoroutine()))
			fmt.Println(memberStop)
		}
	}
	if stop != nil {
		return nil, stop() // the parent is gone, or done
	}
	return nil, nil
}

func (m *soakMember) tell(e soakEvent) {
	e.Member = m.Member
	if _, err := m.events.Write(e.encode()); err != nil {
		panic(fmt.Errorf("the soak's pipe: %w", err)) // the parent is gone
	}
}

// partition numbers the partitions of both topics.
func (m *soakMember) partition(topic string, partition int32) int32 {
	return int32(slices.Index(m.Topics[:], topic)*m.Partitions) + partition
}

func (m *soakMember) tellOf(kind byte, topic string, partition int32, offset, a int64) {
	m.tell(soakEvent{Kind: kind, Partition: m.partition(topic, partition), Offset: offset, A: a})
}

// sample reports the process's memory, after a collection, and how many goroutines the
// last session left: in a session there are as many as it has partitions and work.
func (m *soakMember) sample() {
	for range time.Tick(m.Sample) {
		heap := liveHeap()
		resident, _ := memoryOf("self")
		m.tell(soakEvent{Kind: evSample, Offset: int64(heap), A: resident, B: m.idle.Load()})
	}
}

func (m *soakMember) config() ackpolicy.SubscriberConfig {
	cfg := ackpolicy.SubscriberConfig{
		Kafka:      kafkaConfig(job{Brokers: m.Brokers, Group: m.Group, Session: m.Session}),
		Ordering:   m.Ordering,
		DeadLetter: ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}},
		// Amid a rebalance the group takes no commit before it has given up a member that was
		// killed, and handlers that wait for one hold the drain so long.
		DrainTimeout: m.Session + 8*time.Second,
		Hooks: ackpolicy.Hooks{
			Assigned: func(e ackpolicy.AssignedEvent) { m.tellOf(evAssigned, e.Topic, e.Partition, e.Start, 0) },
			Settled: func(e ackpolicy.SettledEvent) {
				m.tell(soakEvent{evSettled, 0, m.partition(e.Topic, e.Partition), e.Offset, int64(e.Status), int64(e.Attempt)})
			},
			Committed: func(e ackpolicy.CommittedEvent) { m.tellOf(evCommitted, e.Topic, e.Partition, e.Offset, 0) },
			Revoked: func(e ackpolicy.RevokedEvent) {
				var bits int64
				if e.TimedOut {
					bits |= releasedLate
				}
				if e.Err != nil {
					bits |= releasedFailed
					fmt.Fprintf(os.Stderr, "soak: member %d, %s/%d released: %v\n", m.Member, e.Topic, e.Partition, e.Err)
				}
				m.tell(soakEvent{
					Kind: evReleased, Partition: m.partition(e.Topic, e.Partition), Offset: e.Offset,
					A: bits | releasedLetter*int64(e.Letters), B: int64(e.Unmarked),
				})
			},
			DeadLettered: func(e ackpolicy.DeadLetteredEvent) {
				if e.Err == nil {
					m.tellOf(evDeadLettered, e.Topic, e.Partition, e.Offset, 0)
				}
			},
		},
	}
	if m.Cooperative {
		cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategyCooperativeSticky()}
	}
	return cfg
}

// start joins the group; stop leaves it gracefully.
func (m *soakMember) start() (stop func() error, err error) {
	logger := errorLoggerWithout("Handler returned error", "Panic recovered in handler") // which is what they are to do
	sub, err := ackpolicy.NewSubscriber(m.config(), logger)
	if err != nil {
		return nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, err
	}
	for i, policy := range []ackpolicy.Policy{ackpolicy.NackOnError, ackpolicy.Manual} {
		h := router.AddConsumerHandler(policy.String(), m.Topics[i], sub, func(msg *message.Message) error {
			d, ok := ackpolicy.FromMessage(msg)
			if !ok {
				m.tell(soakEvent{Kind: evFault, A: 2})
				return errors.New("no delivery")
			}
			return m.handle(msg, d, policy == ackpolicy.Manual)
		})
		h.AddMiddleware(policy.Middleware)
	}
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	return func() error {
		err := errors.Join(router.Close(), <-ended)
		m.late.Wait()
		return err
	}, nil
}

var errSoak = errors.New("as the soak wants it")

// handle does with a record what its plan says, and reports it to the judge.
func (m *soakMember) handle(msg *message.Message, d *ackpolicy.Delivery, manual bool) error {
	at := soakEvent{Partition: m.partition(d.Topic(), d.Partition()), Offset: d.Offset(), B: int64(decodeStamp(msg.Payload).key)}
	plan := newSoakPlan(m.Seed, at.Partition, at.Offset, d.Attempt(), manual)
	tell := func(kind byte, a int64) {
		e := at
		e.Kind, e.A = kind, a
		m.tell(e)
	}
	tell(evStart, int64(d.Attempt()))
	time.Sleep(plan.work)
	verdict := plan.verdict()
	var err error
	switch plan.act {
	case actVerb: // a verb goes before what the handler returns
		d.Ack()
		err = errSoak
	case actAckSync:
		if m.ackSync(msg.Context(), d, at) {
			verdict |= settledStored
		}
	case actError:
		err = errSoak
	case actNackAfter:
		err = ackpolicy.NackAfter(plan.delay)
	case actReject:
		err = ackpolicy.RejectWith(errSoak)
	case actSignalAck:
		err = fmt.Errorf("wrapped: %w", ackpolicy.ErrAck)
	}
	tell(evEnd, verdict)
	switch plan.act {
	case actPanic:
		panic(errSoak)
	case actLateAck, actLateNack, actLateReject:
		m.settleLate(d, plan)
	}
	return err
}

// ackSync may fail where the record is no longer ours.
func (m *soakMember) ackSync(ctx context.Context, d *ackpolicy.Delivery, at soakEvent) (stored bool) {
	err := d.AckSync(ctx)
	if err != nil && !errors.Is(err, ackpolicy.ErrRevoked) && !errors.Is(err, ackpolicy.ErrClosing) && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "soak: AckSync:", err)
		at.Kind, at.A = evFault, 1
		m.tell(at)
	}
	return err == nil
}

func (m *soakMember) settleLate(d *ackpolicy.Delivery, plan soakPlan) {
	m.late.Go(func() {
		time.Sleep(plan.delay)
		switch plan.act {
		case actLateAck:
			d.Ack()
		case actLateNack:
			d.NackAfter(plan.delay)
		case actLateReject:
			d.Reject(errSoak)
		}
	})
}
