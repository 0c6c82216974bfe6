package letters

import (
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// A request holds records of at most this many bytes, or one larger record: brokers
// bound a batch, by 1 MB as they come.
const requestSize = 512 << 10

var errFenced = errors.New("another redrive of this topic has begun and took over")

// sender writes batches of letters, each in one transaction with the progress that
// it makes: both are stored, or neither is.
type sender struct {
	producer sarama.SyncProducer
	lock     *lock
	topic    string // the dead letter topic
}

// newSender ends what an earlier sender of the group has left undone.
func newSender(client sarama.Client, l *lock, topic string) (*sender, error) {
	cfg := &client.Config().Producer
	s := &sender{lock: l, topic: topic}
	// The producer tries again what cannot succeed any more, too: then without pauses.
	fatal := func() bool { return s.producer.TxnStatus()&sarama.ProducerTxnFlagFatalError != 0 }
	cfg.Retry.BackoffFunc = wait.Unless(fatal, func(int, int) time.Duration { return cfg.Retry.Backoff })
	_, err := client.TransactionCoordinator(cfg.Transaction.ID)
	if !errors.Is(err, sarama.ErrTransactionalIDAuthorizationFailed) { // which it would ask for again and again, too
		if s.producer, err = sarama.NewSyncProducerFromClient(client); err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("cannot begin transactions as %s: %w", cfg.Transaction.ID, err)
}

// batchError is a batch that was not sent.
type batchError struct {
	err     error
	letter  string // the first one that failed; empty: the batch as a whole
	unknown bool   // it may have been sent: whole, if so
}

func (e *batchError) Error() string {
	text := e.err.Error()
	if e.letter != "" {
		text = fmt.Sprintf("letter %s: %s", e.letter, text)
	}
	if e.unknown {
		return "a transaction was not confirmed, and its letters are sent all or none: " + text
	}
	return text
}

func (e *batchError) Unwrap() error { return e.err }

// send writes the messages, whose Metadata are their letters, and stores the marks of
// the partitions.
func (s *sender) send(messages []*sarama.ProducerMessage, progress map[int32]*marks) error {
	offsets := make([]*sarama.PartitionOffsetMetadata, 0, len(progress))
	for partition, m := range progress {
		metadata, err := m.metadata(s.topic, partition)
		if err != nil {
			return err
		}
		offsets = append(offsets, &sarama.PartitionOffsetMetadata{
			Partition: partition, Offset: m.floor, LeaderEpoch: -1, Metadata: &metadata,
		})
	}
	err := s.producer.BeginTxn()
	if err == nil {
		err = s.produce(messages)
	}
	if err == nil {
		err = s.producer.AddOffsetsToTxnWithGroupMetadata(map[string][]*sarama.PartitionOffsetMetadata{s.topic: offsets}, s.lock.membership())
	}
	unknown := false
	if err == nil {
		if err = s.producer.CommitTxn(); err == nil {
			return nil
		}
		// The coordinator may have carried it out, or may do so yet, unless it has refused the marks.
		unknown = s.producer.TxnStatus()&sarama.ProducerTxnFlagAbortableError == 0
	}
	if !unknown {
		_ = s.producer.AbortTxn() // if that fails, too, the broker does, or the next sender
	}
	failed := &batchError{}
	if !errors.As(err, &failed) {
		failed = &batchError{err: fenced(err), unknown: unknown}
	}
	return failed
}

func (s *sender) produce(messages []*sarama.ProducerMessage) error {
	for len(messages) > 0 {
		n, size := 1, messages[0].ByteSize(2)
		for n < len(messages) && size+messages[n].ByteSize(2) <= requestSize {
			size += messages[n].ByteSize(2)
			n++
		}
		if err := s.producer.SendMessages(messages[:n]); err != nil {
			var each sarama.ProducerErrors
			if errors.As(err, &each) && len(each) > 0 {
				l, _ := each[0].Msg.Metadata.(*letter)
				return &batchError{err: sending(each[0].Err, each[0].Msg), letter: l.id()}
			}
			return err
		}
		messages = messages[n:]
	}
	return nil
}

func sending(err error, m *sarama.ProducerMessage) error {
	if errors.Is(err, sarama.ErrMessageSizeTooLarge) {
		err = fmt.Errorf("%w: raise its max.message.bytes, or try --compression zstd", err)
	}
	return fmt.Errorf("cannot write to %s, partition %d: %w", m.Topic, m.Partition, fenced(err))
}

// fenced names the errors by which a broker says that this sender is not the one any more.
func fenced(err error) error {
	is := func(target error) bool { return errors.Is(err, target) }
	switch {
	case is(sarama.ErrProducerFenced), is(sarama.ErrInvalidProducerEpoch):
		return errFenced
	case is(sarama.ErrUnknownMemberId), is(sarama.ErrIllegalGeneration), is(sarama.ErrFencedInstancedId):
		return errLost
	}
	return err
}

func (s *sender) close() { _ = s.producer.Close() }
