package transact

import (
	"errors"
	"fmt"
	"slices"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// end ends a transaction that a failure may have left open: InitProducerId aborts it, or completes
// it if the coordinator had accepted the commit.
func (s *Sender) end() error {
	if !s.pending {
		return nil
	}
	if err := s.connect(); err != nil {
		return err
	}
	producer, err := s.initialize()
	if err != nil {
		return err
	}
	s.pending, s.ended = false, producer
	return nil
}

// clean is called before the next transaction. A coordinator that moves twice in a row can forget
// a partition that it had confirmed, and then nothing ends the failed transaction there: readers
// wait forever (docs/design.md, "Partitions that a coordinator forgets"). So all of its partitions
// are added to another transaction of the same producer, and that is aborted. After that the id is
// not used again.
func (s *Sender) clean() error {
	if s.ended == nil {
		return nil
	}
	err := s.abort(s.ended)
	s.ended = nil
	if err != nil && passes(err) {
		s.pending = true // the one to be aborted
		return err
	}
	s.places = nil
	s.failed++
	s.config.Producer.Transaction.ID = fmt.Sprintf("%s-%d", s.id, s.failed)
	return nil
}

// initialize ends what the id has open.
func (s *Sender) initialize() (producer *sarama.InitProducerIDResponse, err error) {
	c := &s.config.Producer.Transaction
	err = s.ask(func(coordinator *sarama.Broker) error {
		var err error
		producer, err = coordinator.InitProducerID(&sarama.InitProducerIDRequest{
			Version: 3, TransactionalID: &c.ID, TransactionTimeout: c.Timeout, ProducerID: -1, ProducerEpoch: -1,
		})
		if err == nil && producer.Err != sarama.ErrNoError {
			err = producer.Err
		}
		return err
	})
	return producer, err
}

// abort aborts a transaction that has the places of the failed one, and the group's offsets, except what Kafka
// refuses.
func (s *Sender) abort(producer *sarama.InitProducerIDResponse) error {
	id := s.config.Producer.Transaction.ID
	open := true
	err := s.ask(func(coordinator *sarama.Broker) error {
		response, err := coordinator.AddOffsetsToTxn(&sarama.AddOffsetsToTxnRequest{
			Version: 1, TransactionalID: id, ProducerID: producer.ProducerID, ProducerEpoch: producer.ProducerEpoch, GroupID: s.group,
		})
		switch {
		case err != nil:
			return err
		case response.Err == sarama.ErrGroupAuthorizationFailed:
			open = false // nor has it been in the failed one
		case response.Err != sarama.ErrNoError:
			return response.Err
		}
		return nil
	})
	if err != nil {
		return err
	}
	added, err := s.add(producer)
	if err != nil || !open && !added {
		return err
	}
	return s.ask(func(coordinator *sarama.Broker) error {
		response, err := coordinator.EndTxn(&sarama.EndTxnRequest{
			Version: 1, TransactionalID: id, ProducerID: producer.ProducerID, ProducerEpoch: producer.ProducerEpoch,
		})
		if err == nil && response.Err != sarama.ErrNoError {
			err = response.Err
		}
		return err
	})
}

// add adds the places to the transaction, except those that Kafka refuses, and reports whether there are any.
func (s *Sender) add(producer *sarama.InitProducerIDResponse) (added bool, err error) {
	for places := s.places; len(places) > 0; {
		var refused map[string][]int32
		err := s.ask(func(coordinator *sarama.Broker) error {
			response, err := coordinator.AddPartitionsToTxn(&sarama.AddPartitionsToTxnRequest{
				Version: 1, TransactionalID: s.config.Producer.Transaction.ID,
				ProducerID: producer.ProducerID, ProducerEpoch: producer.ProducerEpoch, TopicPartitions: places,
			})
			if err != nil {
				return err
			}
			refused, err = refusedOf(response)
			return err
		})
		if err != nil || len(refused) == 0 {
			return err == nil, err
		}
		places = without(places, refused) // then none was added
	}
	return false, nil
}

// refusedOf returns the partitions of topics that are gone, or may not be written to. Other failures are returned as an
// error.
func refusedOf(response *sarama.AddPartitionsToTxnResponse) (map[string][]int32, error) {
	refused := map[string][]int32{}
	for topic, partitions := range response.Errors {
		for _, p := range partitions {
			switch p.Err {
			case sarama.ErrNoError, sarama.ErrOperationNotAttempted:
			case sarama.ErrUnknownTopicOrPartition, sarama.ErrTopicAuthorizationFailed:
				refused[topic] = append(refused[topic], p.Partition)
			default:
				return nil, p.Err
			}
		}
	}
	return refused, nil
}

// ask sends a request to the coordinator of the id, again and again while that may help.
func (s *Sender) ask(request func(coordinator *sarama.Broker) error) error {
	c := &s.config.Producer.Transaction
	for retries := 0; ; retries++ {
		coordinator, err := s.client.TransactionCoordinator(c.ID)
		if err == nil {
			if err = request(coordinator); err == nil {
				return nil
			}
		}
		if retries >= c.Retry.Max || !passes(err) || s.dialer.Refuses() {
			return err
		}
		if coordinator != nil && !errors.Is(err, sarama.ErrConcurrentTransactions) {
			_ = coordinator.Close()
			_ = s.client.RefreshTransactionCoordinator(c.ID)
		}
		wait.For(c.Retry.BackoffFunc(retries, c.Retry.Max), nil)
	}
}

// passes reports whether an error may pass: of the connection, or of a coordinator that moves.
func passes(err error) bool {
	var code sarama.KError
	if !errors.As(err, &code) {
		return true
	}
	switch code {
	case sarama.ErrConcurrentTransactions, sarama.ErrNotCoordinatorForConsumer, sarama.ErrConsumerCoordinatorNotAvailable,
		sarama.ErrOffsetsLoadInProgress, sarama.ErrRequestTimedOut, sarama.ErrNetworkException:
		return true
	}
	return false
}

// placesOf returns the partitions that messages may have been written to.
func placesOf(messages []*sarama.ProducerMessage) map[string][]int32 {
	places := map[string][]int32{}
	for _, m := range messages {
		if !slices.Contains(places[m.Topic], m.Partition) {
			places[m.Topic] = append(places[m.Topic], m.Partition)
		}
	}
	return places
}

// without returns the places that are not among others.
func without(places, others map[string][]int32) map[string][]int32 {
	rest := map[string][]int32{}
	for topic, partitions := range places {
		for _, p := range partitions {
			if !slices.Contains(others[topic], p) {
				rest[topic] = append(rest[topic], p)
			}
		}
	}
	return rest
}
