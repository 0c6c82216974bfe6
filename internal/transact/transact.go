// Package transact writes Kafka transactions: offsets of a consumer group, with the output of
// the records that they cover.
//
// The offsets are fenced by the generation of the group's member (KIP-447), so nobody has to
// keep transactional ids. After any failure the producer is initialized again under its id,
// which aborts a pending transaction, or completes one whose commit the coordinator had
// accepted. Then what the group has stored says which.
//
// The next transaction has another id, and by it another producer id: a replica that has been
// behind can show the records of an aborted transaction to read_committed readers, if an earlier
// one of the same producer id was aborted, too (docs/design.md, "Aborted records that are
// visible").
package transact

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/dial"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// Sender writes the transactions of one subscription, one after the other. Its methods are
// not called concurrently, but for Abort and Cut.
type Sender struct {
	brokers []string
	group   string
	config  *sarama.Config
	id      string // the first transactional id, with which the others begin
	dialer  *dial.Dialer

	client   sarama.Client        // nil: not connected
	producer sarama.AsyncProducer // nil: to be initialized
	pending  bool                 // a transaction of the id may be open
	failed   int                  // how many ids have had a transaction that failed

	// Of a failed transaction that is to be cleaned up.
	ended  *sarama.InitProducerIDResponse // what has ended it
	places map[string][]int32             // that it may have records in: partitions by topic
}

// New returns a sender. It does not connect. The configuration is Config's.
func New(brokers []string, group string, config *sarama.Config) *Sender {
	s := &Sender{brokers: brokers, group: group, config: config, id: config.Producer.Transaction.ID}
	s.dialer = dial.New(config)
	setPauses(config, s.dialer.Refuses)
	return s
}

// Send writes a transaction. It returns nil once all of it is stored. Otherwise nothing of it
// is, unless the error is a *commit.Unknown. It gives up when stop is closed.
func (s *Sender) Send(stop <-chan struct{}, t commit.Transaction) error {
	defer s.dialer.EndAfter(stop)()
	if err := s.begin(); err != nil {
		return fmt.Errorf("cannot begin a transaction: %w", s.dialer.Explain(s.config, err))
	}
	messages := messagesOf(t)
	s.pending, s.places = true, nil
	ending, err := s.write(t, messages)
	if err == nil {
		s.pending = false
		return nil
	}
	err = explain(err)
	s.places = placesOf(messages)
	s.drop()
	if !ending || len(messages) == 0 {
		return err // nothing is stored, or it can be stored once more
	}
	return s.resolve(stop, t, err)
}

// write writes a transaction. With an error, ending reports whether it may be stored.
func (s *Sender) write(t commit.Transaction, messages []*sarama.ProducerMessage) (ending bool, err error) {
	if err := s.producer.BeginTxn(); err != nil {
		return false, err
	}
	offsets := map[string][]*sarama.PartitionOffsetMetadata{}
	for _, p := range t.Parts {
		offsets[p.Topic] = append(offsets[p.Topic], &sarama.PartitionOffsetMetadata{
			Partition: p.Partition, Offset: p.Offset, LeaderEpoch: -1, Metadata: &p.Metadata,
		})
	}
	if err := s.produce(messages); err != nil {
		return false, err
	}
	if err := s.producer.AddOffsetsToTxnWithGroupMetadata(offsets, &sarama.ConsumerGroupMetadata{
		GroupID: s.group, MemberID: t.Member, GenerationID: t.Generation, GroupInstanceID: t.InstanceID,
	}); err != nil {
		return false, err
	}
	return true, s.producer.CommitTxn()
}

// explain says what sarama does not: what the broker means that it has fenced the producer.
func explain(err error) error {
	if errors.Is(err, sarama.ErrProducerFenced) || errors.Is(err, sarama.ErrInvalidProducerEpoch) {
		return fenced{err}
	}
	return err
}

// fenced is the error of a transaction that the broker has ended.
type fenced struct{ error }

func (f fenced) Error() string {
	return "the broker has ended the transaction (PRODUCER_FENCED): it took longer than Transactions.Timeout, or somebody aborted it"
}

func (f fenced) Unwrap() error { return f.error }

// messagesOf returns the output of a transaction.
func messagesOf(t commit.Transaction) (messages []*sarama.ProducerMessage) {
	for _, p := range t.Parts {
		for _, output := range p.Output {
			messages = append(messages, fresh(output.(*sarama.ProducerMessage)))
		}
	}
	return messages
}

// fresh returns a message that the producer may change: the same output may be written again.
func fresh(m *sarama.ProducerMessage) *sarama.ProducerMessage {
	return &sarama.ProducerMessage{
		Topic: m.Topic, Key: m.Key, Value: m.Value, Headers: slices.Clip(slices.Clone(m.Headers)), Metadata: m.Metadata,
		Partition: m.Partition, Timestamp: m.Timestamp,
	}
}

// produce writes messages, and returns once the result of each is known.
func (s *Sender) produce(messages []*sarama.ProducerMessage) (err error) {
	for results := len(messages); results > 0; {
		var input chan<- *sarama.ProducerMessage
		var next *sarama.ProducerMessage
		if len(messages) > 0 {
			input, next = s.producer.Input(), messages[0]
		}
		select {
		case input <- next:
			messages = messages[1:]
			continue
		case <-s.producer.Successes():
		case failed := <-s.producer.Errors():
			if err == nil {
				err = fmt.Errorf("cannot write to topic %s: %w", failed.Msg.Topic, failed.Err)
			}
		}
		results--
	}
	return err
}

// resolve finds out whether a transaction is stored whose commit failed.
func (s *Sender) resolve(stop <-chan struct{}, t commit.Transaction, cause error) error {
	for attempt := 1; ; attempt++ {
		stored, err := s.stored(t)
		switch {
		case err == nil && stored:
			return nil
		case err == nil:
			return cause
		case !wait.For(wait.Backoff(attempt, 20*time.Millisecond, time.Second), stop):
			return &commit.Unknown{Err: errors.Join(cause, err)}
		}
	}
}

// stored reports whether a transaction is stored, after it has seen to it that it is not
// pending. A transaction with output changes what is stored for the partition of that output,
// and all partitions are stored together: any one that has what was sent proves it. Of
// partitions that others have taken over meanwhile the output is not ours to write.
func (s *Sender) stored(t commit.Transaction) (bool, error) {
	if err := s.end(); err != nil {
		return false, err
	}
	for _, p := range t.Parts {
		if len(p.Output) == 0 {
			continue
		}
		position, err := commit.StablePosition(s.client, s.group, p.Topic, p.Partition)
		if err != nil {
			_ = s.client.RefreshCoordinator(s.group)
			return false, err
		}
		if position.Offset == p.Offset && position.Metadata == p.Metadata {
			return true, nil
		}
	}
	return false, nil
}

// begin sees to it that there is a producer, and no transaction of an earlier one is pending.
func (s *Sender) begin() (err error) {
	if err = errors.Join(s.end(), s.clean()); err != nil || s.producer != nil {
		return err
	}
	if err = s.connect(); err == nil {
		s.producer, err = sarama.NewAsyncProducerFromClient(s.client)
	}
	return err
}

var errCut = errors.New("connections were cut")

// connect sees to it that there is a client.
func (s *Sender) connect() (err error) {
	if s.dialer.Refuses() {
		return errCut
	}
	if s.client == nil {
		if s.client, err = sarama.NewClient(s.brokers, s.config); err != nil {
			s.client = nil
			return err
		}
		s.dialer.Worked()
	}
	return nil
}

// drop closes the producer. Nothing is under way.
func (s *Sender) drop() {
	if s.producer == nil {
		return
	}
	s.producer.AsyncClose()
	var errs sync.WaitGroup
	errs.Go(func() {
		for range s.producer.Errors() { //nolint:revive // none can come
		}
	})
	for range s.producer.Successes() { //nolint:revive // none can come
	}
	errs.Wait()
	s.producer = nil
}

// Recover ends a transaction that a failure has left open: its offsets would delay whoever
// reads the group's positions. It tries once.
func (s *Sender) Recover() error { return s.end() }

// Abort ends the requests under way with an error.
func (s *Sender) Abort() { s.dialer.Abort() }

// Cut closes all connections for good.
func (s *Sender) Cut() { s.dialer.Cut() }

// Close ends what is open and disconnects.
func (s *Sender) Close() error {
	err := errors.Join(s.end(), s.clean())
	s.drop()
	if s.client != nil {
		err = errors.Join(err, s.client.Close())
		s.client = nil
	}
	s.dialer.Cut()
	return err
}

// RecoverUntil is Recover, whose requests are cut off when ctx ends.
func (s *Sender) RecoverUntil(ctx context.Context) error {
	defer s.dialer.EndAfter(ctx.Done())()
	return s.Recover()
}
