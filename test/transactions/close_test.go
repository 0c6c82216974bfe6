package transactions_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// busy is what a machine with better things to do may add.
const busy = 2 * time.Second

// With the broker gone, or silent, when the last transaction is to be written, Close ends within DrainTimeout + 5 s, and
// leaves nothing running. The output appears with the next owner.
func TestCloseWithoutABrokerAmidATransaction(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*brokertest.Network){
		"refused": func(n *brokertest.Network) { n.Cut() },
		"silent":  func(n *brokertest.Network) { n.Delay(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const drain = 300 * time.Millisecond
			var network brokertest.Network
			b := newBed(t, 1, onDemand, testkit.DrainTimeout(drain), func(c *ackpolicy.SubscriberConfig) {
				network.Use(c.Kafka.OverwriteSaramaConfig)
			})
			handled := make(chan struct{})
			b.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			b.Router.AddHandler("handler", b.in, b.sub, b.out, b.pub, func(*message.Message) ([]*message.Message, error) {
				defer close(handled)
				return message.Messages{text("last")}, nil
			})
			b.Start(t)
			testkit.Await(t, "the handler", handled)
			fail(&network)
			began := time.Now()
			b.Stop()
			if took := time.Since(began); took > drain+5*time.Second+busy {
				t.Errorf("took %v", took)
			}
			if lines := testkit.Containing(b.Log.At("error"), "still runs"); len(lines) > 0 {
				t.Errorf("left behind: %v", lines)
			}
		})
	}
}

// A member whose partitions are in a transaction that has not ended waits for its end before it reads. Close does not.
func TestCloseWhileAnotherTransactionIsOpen(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	end := holdOffsets(t, b.sub.State().ConsumerGroup, b.in)
	b.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	b.Router.AddConsumerHandler("handler", b.in, b.sub, b.Recorded(testkit.Succeed))
	b.Start(t)
	testkit.Eventually(t, "the wait", func() bool { return len(testkit.Containing(b.Log.At("info"), "Waiting for the consumer group")) > 0 })
	began := time.Now()
	b.Stop()
	if took := time.Since(began); took > time.Second+busy {
		t.Errorf("took %v", took)
	}
	if lines := b.Log.At("error"); len(lines) > 0 {
		t.Error(lines)
	}
	b.Want(t)
	end()
}

// holdOffsets stores an offset of a group's first partition in a transaction that stays open until end is called.
func holdOffsets(t *testing.T, group, topic string) (end func()) {
	t.Helper()
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	client, err := sarama.NewClient(testkit.Shared.Addrs(), cfg)
	testkit.Check(t, err)
	t.Cleanup(func() { _ = client.Close() })
	id, metadata := brokertest.Group(t), ""
	transactions, err := client.TransactionCoordinator(id)
	testkit.Check(t, err)
	offsets, err := client.Coordinator(group)
	testkit.Check(t, err)
	producer, err := transactions.InitProducerID(&sarama.InitProducerIDRequest{TransactionalID: &id, TransactionTimeout: time.Minute})
	testkit.Check(t, err)
	added, err := transactions.AddOffsetsToTxn(&sarama.AddOffsetsToTxnRequest{
		TransactionalID: id, ProducerID: producer.ProducerID, ProducerEpoch: producer.ProducerEpoch, GroupID: group,
	})
	testkit.Check(t, err)
	stored, err := offsets.TxnOffsetCommit(&sarama.TxnOffsetCommitRequest{
		TransactionalID: id, ProducerID: producer.ProducerID, ProducerEpoch: producer.ProducerEpoch, GroupID: group,
		Topics: map[string][]*sarama.PartitionOffsetMetadata{topic: {{Partition: 0, Offset: 0, Metadata: &metadata}}},
	})
	testkit.Check(t, err)
	if err := stored.Topics[topic][0].Err; added.Err != sarama.ErrNoError || err != sarama.ErrNoError {
		t.Fatal(added.Err, err)
	}
	return func() {
		_, err := transactions.EndTxn(&sarama.EndTxnRequest{TransactionalID: id, ProducerID: producer.ProducerID, ProducerEpoch: producer.ProducerEpoch})
		testkit.Check(t, err)
	}
}

// A coordinator of transactions that does not respond delays a rebalance for as long as the last commit may take, and no
// longer: what the member still has under way then is cut off.
func TestRebalanceWithoutTheCoordinatorOfTransactions(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(1)...)
	var silent atomic.Bool
	release := make(chan struct{})
	fake := broker.Kfake()
	fake.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		if silent.Load() {
			fake.SleepControl(func() { <-release })
		}
		return nil, nil, false
	})
	defer close(release)
	cfg := testkit.Config(brokertest.Group(t), at, testkit.DrainTimeout(200*time.Millisecond), testkit.Protocols()["eager"], onDemand)
	revoked := make(chan time.Time, 10)
	cfg.Hooks.Revoked = func(ackpolicy.RevokedEvent) { revoked <- time.Now() }
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 1)
	silent.Store(true)
	cfg.Hooks = ackpolicy.Hooks{}
	other := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	over := testkit.Await(t, "the end of the drain", revoked)
	joined := func(s *testkit.Service) int {
		return len(testkit.Containing(s.Log.At("info"), "Joined the consumer group"))
	}
	testkit.Eventually(t, "the rebalance", func() bool { return joined(s) == 2 && joined(other) == 1 })
	if took := time.Since(over); took > 2*time.Second+busy {
		t.Errorf("the rebalance took %v more", took)
	}
}
