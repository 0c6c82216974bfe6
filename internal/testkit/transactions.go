package testkit

import (
	"testing"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// ReadCommitted sets the isolation level.
func ReadCommitted(c *ackpolicy.SubscriberConfig) {
	c.Kafka.OverwriteSaramaConfig.Consumer.IsolationLevel = sarama.ReadCommitted
}

// UncheckedTransactions has brokers accept records of transactions that their coordinators do not know. Brokers since 3.6
// check that.
func UncheckedTransactions(t testing.TB) {
	t.Helper()
	off := "false"
	Admin(t, Shared, func(a sarama.ClusterAdmin) error {
		return a.IncrementalAlterConfig(sarama.BrokerResource, "", map[string]sarama.IncrementalAlterConfigsEntry{
			"transaction.partition.verification.enable": {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &off},
		}, false)
	})
}

// BeginTransaction opens a transaction and writes records in it.
func BeginTransaction(t testing.TB, topic string, records int) sarama.SyncProducer {
	t.Helper()
	return BeginTransactionAt(t, Shared, topic, records)
}

// BeginTransactionAt is BeginTransaction on another broker.
func BeginTransactionAt(t testing.TB, broker *brokertest.Broker, topic string, records int) sarama.SyncProducer {
	t.Helper()
	cfg := sarama.NewConfig()
	brokertest.WriteOnce(cfg)
	cfg.Producer.Transaction.ID = brokertest.Group(t)
	producer, err := sarama.NewSyncProducer(broker.Addrs(), cfg)
	Check(t, err)
	Check(t, producer.BeginTxn())
	for i := range records {
		_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: topic, Value: sarama.ByteEncoder(Numbered(records)[i].Value)})
		Check(t, err)
	}
	return producer
}

// Transact writes records in a transaction, and commits or aborts it.
func Transact(t testing.TB, topic string, records int, commit bool) {
	t.Helper()
	producer := BeginTransaction(t, topic, records)
	if commit {
		Check(t, producer.CommitTxn())
	} else {
		Check(t, producer.AbortTxn())
	}
	Check(t, producer.Close())
}
