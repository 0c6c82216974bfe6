package observability_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicyprom"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// troubled is a service, what Prometheus makes of it, and what ends its trouble.
type troubled struct {
	*testkit.Service
	t      *testing.T
	prom   *prometheusServer
	group  string
	topic  string
	broker *brokertest.Broker
	sub    *ackpolicy.Subscriber
	fixed  chan struct{} // closed once the cause is fixed

	partitions  int
	partition   int32 // of the record in trouble
	offset      int64
	handlerSlow time.Duration
}

func newTroubled(t *testing.T, prom *prometheusServer) *troubled {
	return &troubled{
		Service: testkit.NewService(t), t: t, prom: prom, group: brokertest.Group(t), topic: brokertest.Topic(t), broker: testkit.Shared,
		fixed: make(chan struct{}), partitions: 1, handlerSlow: time.Minute / speed,
	}
}

func (f *troubled) isTrouble(partition int32, offset int64) bool {
	return partition == f.partition && offset == f.offset
}

// consume runs the service. trouble is called with the record in trouble; all others are acked.
func (f *troubled) consume(policy message.HandlerMiddleware, trouble testkit.Handle, options ...testkit.Option) {
	f.t.Helper()
	metrics := ackpolicyprom.New(ackpolicyprom.Options{})
	cfg := testkit.Config(f.group, options...)
	cfg.Kafka.Brokers = f.broker.Addrs()
	cfg.HandlerSlow = f.handlerSlow
	cfg.Hooks = ackpolicy.JoinHooks(cfg.Hooks, metrics.Hooks())
	f.sub = testkit.NewSubscriber(f.t, cfg, f.Log)
	metrics.Observe(f.sub)
	f.t.Cleanup(f.prom.scrapes(f.t, metrics))
	f.Router.AddMiddleware(policy)
	f.Router.AddConsumerHandler("handler", f.topic, f.sub, f.Recorded(func(msg *message.Message, d *ackpolicy.Delivery) error {
		if f.isTrouble(d.Partition(), d.Offset()) {
			return trouble(msg, d)
		}
		d.Ack()
		return nil
	}))
	f.Start(f.t)
}

func (f *troubled) produce(records ...brokertest.Record) {
	f.t.Helper()
	_, err := brokertest.Produce(f.broker.Addrs(), f.topic, f.partition, records...)
	testkit.Check(f.t, err)
}

// feed has records come all the time. The one in trouble has a key of its own.
func (f *troubled) feed(rate int) {
	testkit.StartKeyedProducer(f.t, f.topic, f.partitions, rate, func(partition int32, offset int64) string {
		if f.isTrouble(partition, offset) {
			return "trouble"
		}
		return testkit.KeyOf(partition, offset, 5)
	})
}

// until waits in a handler until the cause is fixed.
func (f *troubled) until(msg *message.Message, _ *ackpolicy.Delivery) error {
	return testkit.Until(msg.Context(), f.fixed)
}

// fail fails until the cause is fixed.
func (f *troubled) fail(*message.Message, *ackpolicy.Delivery) error {
	if f.isFixed() {
		return nil
	}
	return testkit.ErrBoom
}

func (f *troubled) isFixed() bool {
	select {
	case <-f.fixed:
		return true
	default:
		return false
	}
}

// later settles a record when the cause is fixed.
func (f *troubled) later(_ *message.Message, d *ackpolicy.Delivery) error {
	go func() {
		<-f.fixed
		d.Ack()
	}()
	return nil
}

// scraped waits until Prometheus has seen the service with its partitions.
func (f *troubled) scraped(what string) {
	f.t.Helper()
	testkit.Eventually(f.t, what, func() bool {
		found, err := f.prom.query(f.t.Context(), `ackpolicy_assignments_total{consumer_group="`+f.group+`"} > 0`, time.Now())
		return err == nil && len(found) > 0
	})
}

// destination is a dead letter destination that fails until the cause is fixed.
type destination struct {
	f   *troubled
	err error
}

func (d destination) Send(context.Context, *sarama.ConsumerMessage, ackpolicy.Letter) error {
	if d.f.isFixed() {
		return nil
	}
	return d.err
}

type permanent struct{ error }

func (permanent) Permanent() bool { return true }

// unmarshaler cannot decode the record in trouble until the cause is fixed.
type unmarshaler struct{ f *troubled }

// Unmarshal implements kafka.Unmarshaler.
func (u unmarshaler) Unmarshal(r *sarama.ConsumerMessage) (*message.Message, error) {
	if u.f.isTrouble(r.Partition, r.Offset) && !u.f.isFixed() {
		return nil, errors.New("not JSON")
	}
	return message.NewMessage("", r.Value), nil
}

// otherMember is a member of the group that is not ours. It stays in a rebalance until stay is closed.
type otherMember struct {
	joined chan struct{}
	stay   <-chan struct{}
	once   sync.Once
}

func (m *otherMember) Setup(sarama.ConsumerGroupSession) error {
	m.once.Do(func() { close(m.joined) })
	return nil
}

func (m *otherMember) Cleanup(sarama.ConsumerGroupSession) error {
	if m.stay != nil {
		<-m.stay
	}
	return nil
}

func (m *otherMember) ConsumeClaim(_ sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for range claim.Messages() { //nolint:revive // nothing is to be done with them
	}
	return nil
}

// join has another member join the group, for one session.
func (f *troubled) join(instance string, stay <-chan struct{}) {
	f.t.Helper()
	cfg := testkit.Config(f.group).Kafka.OverwriteSaramaConfig
	cfg.Consumer.Group.InstanceId = instance
	cfg.Consumer.Group.Rebalance.Timeout = time.Minute
	cfg.Net.ReadTimeout = 2 * time.Minute
	cfg.Consumer.Return.Errors = false
	g, err := sarama.NewConsumerGroup(f.broker.Addrs(), f.group, cfg)
	testkit.Check(f.t, err)
	m := &otherMember{joined: make(chan struct{}), stay: stay}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		_ = g.Consume(ctx, []string{f.topic}, m)
		_ = g.Close()
	})
	f.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	testkit.Await(f.t, "the other member", m.joined)
}
