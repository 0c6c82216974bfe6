package simulation

import (
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

const (
	output      = "output"
	outputs     = 2 // partitions
	letterTopic = "letters"
)

// transactionSteps are the requests of a transaction, and how a broker may refuse each.
var transactionSteps = []struct {
	key      kmsg.Key
	refusals []*kerr.Error
}{
	{kmsg.InitProducerID, []*kerr.Error{kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.CoordinatorNotAvailable, kerr.ConcurrentTransactions}},
	{kmsg.AddPartitionsToTxn, []*kerr.Error{kerr.ConcurrentTransactions, kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.ProducerFenced, kerr.UnknownServerError}},
	{kmsg.Produce, []*kerr.Error{kerr.NotLeaderForPartition, kerr.RequestTimedOut, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend, kerr.InvalidProducerEpoch}},
	{kmsg.AddOffsetsToTxn, []*kerr.Error{kerr.ConcurrentTransactions, kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.ProducerFenced, kerr.UnknownServerError}},
	{kmsg.TxnOffsetCommit, []*kerr.Error{kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.RequestTimedOut, kerr.RebalanceInProgress, kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.UnknownServerError}},
	{kmsg.EndTxn, []*kerr.Error{kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.ConcurrentTransactions, kerr.ProducerFenced, kerr.InvalidTxnState, kerr.UnknownServerError}},
}

// withTransactions makes one history of four transactional. It has dice of its own: the other histories stay what they were.
func (p *plan) withTransactions() {
	r := dice(p.seed, 4)
	if p.transactional = r.IntN(4) == 0 || *transactions; !p.transactional {
		return
	}
	p.timeout = pick(r, time.Second, 2*time.Second, 4*time.Second)
	if p.policy == ackpolicy.AckFirst {
		p.policy = pick(r, ackpolicy.NackOnError, ackpolicy.RejectOnError)
	}
	for range r.IntN(6) {
		s := step{
			at: between(r, 0, storm), do: pick(r, refuseStep, loseStep, loseStep), member: r.IntN(8), length: between(r, 20*time.Millisecond, 2*time.Second),
			code: r.IntN(8), amid: r.IntN(4) == 0, kind: r.IntN(len(transactionSteps)), after: r.IntN(2) == 0,
		}
		p.steps = append(p.steps, s)
	}
	if r.IntN(3) == 0 { // what is pending outlives its writer, who is out of the group after a session
		p.timeout = session + between(r, 2*time.Second, 8*time.Second)
		for range 1 + r.IntN(2) {
			p.steps = append(p.steps, step{
				at: between(r, 0, storm), do: holdEnd, member: r.IntN(8), length: between(r, 50*time.Millisecond, 2*time.Second),
				extent: between(r, time.Second, p.timeout), amid: r.IntN(4) == 0, kind: len(transactionSteps) - 1, after: r.IntN(3) > 0,
			})
		}
	}
}

// holdEnd has the broker take its time with requests to end transactions. It returns what ends that.
func (w *world) holdEnd(by time.Duration) (end func()) {
	w.holding.Store(int64(by))
	return func() { w.holding.Store(0) }
}

// held is called for each request to end a transaction.
func (w *world) held(kmsg.Request) (kmsg.Response, error, bool) {
	w.cluster.KeepControl()
	if by := time.Duration(w.holding.Load()); by > 0 {
		w.cluster.SleepControl(func() { time.Sleep(by) })
	}
	return nil, nil, false
}

// refuseStep has the broker refuse requests. It returns what ends that.
func (w *world) refuseStep(s step) (end func()) {
	refused := transactionSteps[s.kind]
	f := kfake.Fault{Keys: []kmsg.Key{refused.key}, Err: refused.refusals[s.code%len(refused.refusals)], Count: -1}
	switch {
	case refused.key == kmsg.Produce:
		f.Topic = output
	case f.Err == kerr.UnknownMemberID:
		f.Count = 1
	}
	return w.cluster.Fault(f).Remove
}

// addTransactions completes the configuration of a member. The function that makes a letter's headers tells the judge of it.
func (w *world) addTransactions(m *member, c *ackpolicy.SubscriberConfig) {
	c.Transactions = &ackpolicy.Transactions{Interval: w.commitInterval, Timeout: w.timeout}
	c.DeadLetter = ackpolicy.DeadLetterTopic{
		Topic: func(string) string { return letterTopic },
		Headers: func(l ackpolicy.Letter) []sarama.RecordHeader {
			w.rejects(m, l)
			return ackpolicy.HeadersAckpolicy(l)
		},
	}
}

const keyed = "key"

func (m *member) newPublisher() message.Publisher {
	pub, err := m.sub.Publisher(kafka.PublisherConfig{Marshaler: kafka.NewWithPartitioningMarshaler(
		func(_ string, msg *message.Message) (string, error) { return msg.Metadata.Get(keyed), nil })})
	if err != nil {
		panic(err)
	}
	return pub
}

// put publishes what a handler publishes itself, and returns what it is to return.
func (m *member) put(msg *message.Message, d *delivery, b behaviour) (produced []*message.Message) {
	if m.pub == nil {
		return nil
	}
	one := func(n int) *message.Message {
		out := message.NewMessage(watermill.NewUUID(), fmt.Appendf(nil, "%d/%d by %d #%d", d.part, d.offset, d.serial, n))
		out.Metadata.Set(keyed, fmt.Sprint(d.part, d.lane))
		return out
	}
	early := b.manner == acksEarly || b.manner == nacksEarly || b.manner == acksSync
	n := 0
	for ; n < int(d.offset)%3 || early && n < 1; n++ {
		out := one(n)
		out.SetContext(msg.Context())
		_ = m.publish(d, out)
	}
	if !early {
		produced = append(produced, one(n))
	}
	return produced
}

func (m *member) publish(d *delivery, messages ...*message.Message) error {
	err := m.pub.Publish(output, messages...)
	m.w.published(d, len(messages), err)
	return err
}

// tooLate wants what is published after a verb to be refused.
func (m *member) tooLate(msg *message.Message, d *delivery) {
	if m.pub == nil || d.serial%4 > 0 {
		return
	}
	out := message.NewMessage(watermill.NewUUID(), []byte("too late"))
	out.SetContext(msg.Context())
	if err := m.pub.Publish(output, out); !errors.Is(err, ackpolicy.ErrSettled) && !errors.Is(err, ackpolicy.ErrRevoked) {
		m.w.violate("output", d.part, d.offset, "%d/%d is settled, and publishes: %v", d.part, d.offset, err)
	}
}
