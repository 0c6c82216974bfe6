package simulation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// member is a process of the group: a Subscriber, and a loop that does what Watermill's Router does.
type member struct {
	w      *world
	id     int
	link   *link
	sub    *ackpolicy.Subscriber
	pub    message.Publisher // nil without transactions
	handle message.HandlerFunc
	ended  chan struct{} // the output is closed, and all handlers have returned
}

func (w *world) config(m *member) ackpolicy.SubscriberConfig {
	c := kafka.DefaultSaramaSubscriberConfig()
	c.ClientID = fmt.Sprint("m", m.id)
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.MaxWaitTime = 100 * time.Millisecond
	c.Consumer.Group.Heartbeat.Interval = session / 12
	c.Consumer.Group.Session.Timeout = session
	c.Consumer.Group.Rebalance.Timeout = rebalance
	c.Net.ReadTimeout = rebalance + 4*time.Second
	c.Net.Proxy.Enable, c.Net.Proxy.Dialer = true, m.link
	c.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategyRange()}
	if w.cooperative {
		c.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategyCooperativeSticky()}
	}
	config := ackpolicy.SubscriberConfig{
		Kafka: kafka.SubscriberConfig{
			Brokers: []string{broker}, OverwriteSaramaConfig: c, ConsumerGroup: group,
			NackResendSleep: resend, ReconnectRetrySleep: 100 * time.Millisecond,
		},
		Ordering: w.ordering, MaxInFlight: w.maxInFlight, MaxUncommitted: w.maxUncommitted, MaxDeliveries: w.maxDeliveries,
		CommitInterval: w.commitInterval, DrainTimeout: w.drainTimeout,
		DeadLetter: letters{m},
		Hooks: ackpolicy.Hooks{
			Assigned:    func(e ackpolicy.AssignedEvent) { w.assigned(m, e) },
			Settled:     func(e ackpolicy.SettledEvent) { w.settled(m, e) },
			Revoked:     func(e ackpolicy.RevokedEvent) { w.revoked(m, e) },
			Unconfirmed: func(e ackpolicy.UnconfirmedEvent) { w.unconfirmed(m, e) },
			CommitFailed: func(e ackpolicy.CommitFailedEvent) {
				w.note(m, e.Partition, e.Offset, "commit failed, attempt %d: %v", e.Attempt, e.Err)
			},
			Committed: func(e ackpolicy.CommittedEvent) { w.note(m, e.Partition, e.Offset, "committed") },
		},
	}
	if w.transactional {
		w.addTransactions(m, &config)
	}
	return config
}

// start begins a process. It tries to subscribe until it can or is dead.
func (w *world) start() *member {
	w.mu.Lock()
	w.started++
	m := &member{w: w, id: w.started, link: w.network.link(), ended: make(chan struct{})}
	w.running = append(w.running, m)
	w.mu.Unlock()
	w.note(m, -1, -1, "starts")
	sub, err := ackpolicy.NewSubscriber(w.config(m), logger{w, m, nil})
	if err != nil {
		panic(err)
	}
	m.sub = sub
	if w.transactional {
		m.pub = m.newPublisher()
	}
	m.handle = ackpolicy.Middleware{Policy: w.policy, ConfirmFirst: w.policy == ackpolicy.AckFirst}.Middleware(m.handler)
	w.goes.Go(m.run)
	return m
}

func (m *member) run() {
	defer close(m.ended)
	for {
		out, err := m.sub.Subscribe(context.Background(), topic)
		if err == nil {
			for msg := range out {
				m.w.goes.Go(func() { m.serve(msg) })
			}
			return
		}
		m.w.note(m, -1, -1, "cannot subscribe: %v", err)
		if m.link.isDead() || m.w.isClosing(m) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// close ends the process gracefully.
func (m *member) close() {
	m.w.leaves(m, false)
	began := time.Now()
	err := m.sub.Close()
	m.w.note(m, -1, -1, "closed in %v: %v", time.Since(began), err)
	if took := time.Since(began); took > m.w.drainTimeout+5*time.Second || err != nil {
		m.w.violate("close", -1, -1, "member %d: Close took %v of at most %v: %v", m.id, took, m.w.drainTimeout+5*time.Second, err)
	}
}

// kill ends it without a goodbye. What happens in the bubble is nobody's any more.
func (m *member) kill() {
	m.w.leaves(m, true)
	m.link.kill()
	_ = m.sub.Close()
}

// serve is what the Router does with a message.
func (m *member) serve(msg *message.Message) {
	d, ok := ackpolicy.FromMessage(msg)
	if !ok {
		panic("no delivery")
	}
	del := m.w.take(m, d, msg.Payload)
	produced, err := m.safely(msg)
	if err == nil && len(produced) > 0 {
		err = m.publish(del, produced...)
	}
	m.w.finish(del, msg.Context().Err() != nil, err)
	if err != nil {
		msg.Nack()
	} else {
		msg.Ack()
	}
}

func (m *member) safely(msg *message.Message) (_ []*message.Message, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return m.handle(msg)
}

var errBoom = errors.New("boom")

func (m *member) handler(msg *message.Message) ([]*message.Message, error) {
	w := m.w
	d, _ := ackpolicy.FromMessage(msg)
	del := w.begin(m, d)
	b := w.behaviour(d.Partition(), d.Offset(), d.Attempt())
	if w.policy == ackpolicy.AckFirst {
		b.manner = byEnd
	}
	wait := time.NewTimer(b.work)
	defer wait.Stop()
	var stopped <-chan struct{}
	if !b.deaf {
		stopped = msg.Context().Done()
	}
	select {
	case <-wait.C:
	case <-stopped:
		w.fails(del)
		return nil, msg.Context().Err()
	}
	produced := m.put(msg, del, b)
	switch b.manner {
	case acksEarly:
		w.verb(del, "Ack", true, d.Ack)
		m.tooLate(msg, del)
		time.Sleep(b.late / 100)
	case nacksEarly:
		w.verb(del, "NackAfter", false, func() bool { w.nacks(del, b.delay); return d.NackAfter(b.delay) })
	case acksSync:
		w.ackSync(del, d, msg.Context())
	case acksLate, acksBelow, nacksLate:
		w.goes.Go(func() { m.later(d, del, b) })
	}
	w.intends(del, b)
	switch b.end {
	case fails:
		return nil, errBoom
	case panics:
		panic(errBoom)
	case signalsAck:
		return nil, fmt.Errorf("wrapped: %w", ackpolicy.ErrAck)
	case signalsNack:
		return nil, ackpolicy.NackAfter(b.delay)
	case signalsReject:
		return nil, ackpolicy.RejectWith(errBoom)
	}
	return produced, nil
}

// later settles a record whose handler has returned, mostly.
func (m *member) later(d *ackpolicy.Delivery, del *delivery, b behaviour) {
	time.Sleep(b.late)
	w := m.w
	switch b.manner {
	case acksLate:
		w.verb(del, "late Ack", true, d.Ack)
	case acksBelow:
		w.below(del, d.AckCumulative)
	case nacksLate:
		w.verb(del, "late NackAfter", false, func() bool { w.nacks(del, b.delay); return d.NackAfter(b.delay) })
	}
}

// letters is the dead letter destination. It fails now and then, and takes its time.
type letters struct{ m *member }

func (l letters) Send(ctx context.Context, r *sarama.ConsumerMessage, letter ackpolicy.Letter) error {
	w := l.m.w
	time.Sleep(2 * time.Millisecond)
	if l.m.link.isDead() || w.network.roll(0.1) {
		return errors.New("the dead letter destination is away")
	}
	w.letterStored(l.m, letter, r.Value)
	return nil
}

// logger keeps the library's lines for whoever reads a failure.
type logger struct {
	w      *world
	m      *member
	fields watermill.LogFields
}

func (l logger) line(level, msg string, err error, fields watermill.LogFields) {
	fields = l.fields.Add(fields)
	for _, dull := range []string{"topic", "consumer_group", "kafka_consumer_uuid", "provider", "subscriber_uuid"} {
		delete(fields, dull)
	}
	l.w.note(l.m, -1, -1, "%s %s %v %v", level, msg, err, fields)
}

func (l logger) Error(msg string, err error, fields watermill.LogFields) {
	l.line("ERROR", msg, err, fields)
}
func (l logger) Info(msg string, fields watermill.LogFields) { l.line("info", msg, nil, fields) }
func (l logger) Debug(string, watermill.LogFields)           {}
func (l logger) Trace(string, watermill.LogFields)           {}
func (l logger) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return logger{l.w, l.m, l.fields.Add(fields)}
}
