package ackpolicy_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// A partition whose fetches come back empty though the broker has records is told, its sibling goes on, and a reconnect
// heals it.
func TestStalledPartition(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"group", "no group"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const stalled, healthy = 0, 1
			broker := brokertest.NewFake(t)
			topic, at := fakeTopicOf(t, broker, 2)
			group := brokertest.Group(t)
			if kind == "no group" {
				group = ""
			}
			cfg := config(group, at)
			told := make(chan ackpolicy.FetchStalledEvent, 10)
			cfg.Hooks.FetchStalled = func(e ackpolicy.FetchStalledEvent) { told <- e }
			var assigned, fault atomic.Int32
			cfg.Hooks.Assigned = func(e ackpolicy.AssignedEvent) {
				if e.Partition == stalled && assigned.Add(1) == 2 {
					fault.Store(0)
				}
			}
			wait := int32(cfg.Kafka.OverwriteSaramaConfig.Consumer.MaxWaitTime / time.Millisecond)
			broker.Kfake().ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
				broker.Kfake().KeepControl()
				if fetch := request.(*kmsg.FetchRequest); fault.Load() == 1 && fetch.MaxWaitMillis == wait { // the consumer's
					for i := range fetch.Topics {
						for j := range fetch.Topics[i].Partitions {
							if p := &fetch.Topics[i].Partitions[j]; p.Partition == stalled {
								p.FetchOffset = 2 // the end: nothing comes
							}
						}
					}
				}
				return nil, nil, false
			})
			for p := range int32(2) {
				_, err := brokertest.Produce(broker.Addrs(), topic, p, numbered(2)...)
				check(t, err)
			}
			fault.Store(1)
			s := newService(t)
			s.router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			sub := newSubscriber(t, cfg, s.log)
			sub.LookEvery(200 * time.Millisecond)
			s.router.AddConsumerHandler("handler", topic, sub, s.recorded(func(*message.Message, *ackpolicy.Delivery) error { return nil }))
			s.start(t)
			for _, reconnect := range []bool{false, true} {
				e := await(t, "the hook", told)
				if e.Topic != topic || e.Partition != stalled || e.Offset != 0 || e.End != 2 || e.For == 0 || e.Reconnect != reconnect {
					t.Errorf("the hook was told %+v", e)
				}
			}
			s.journal.wait(t, 4)
			s.stop()
			for i, d := range s.journal.all() {
				if want := []int32{healthy, healthy, stalled, stalled}[i]; d.Partition() != want && kind == "group" {
					t.Errorf("delivery %d is of partition %d", i, d.Partition())
				}
			}
			if n := len(with(s.log.at("error"), "Partition stalled", topic, "kafka_partition=0", "offset=0")); n != 2 {
				t.Errorf("%d lines in the log: %v", n, s.log.at("error"))
			}
		})
	}
}

// What no consumer gets, the marks and the records of aborted and of open transactions, is no stall: nothing is told.
func TestNothingToReadIsNoStall(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 1, numbered(2)...)
	for _, commit := range []bool{true, false} {
		transact(t, topic, 1, commit)
	}
	open := begin(t, topic, 1)
	defer open.Close()
	cfg := config(brokertest.Group(t), readCommitted)
	told := make(chan ackpolicy.FetchStalledEvent, 10)
	cfg.Hooks.FetchStalled = func(e ackpolicy.FetchStalledEvent) { told <- e }
	s := newService(t)
	s.router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	sub := newSubscriber(t, cfg, s.log)
	const every = 50 * time.Millisecond
	sub.LookEvery(every)
	s.router.AddConsumerHandler("handler", topic, sub, s.recorded(func(*message.Message, *ackpolicy.Delivery) error { return nil }))
	s.start(t)
	s.journal.wait(t, 3)
	for range 20 {
		select {
		case e := <-told:
			if e.Offset > 2 { // or the machine is slow, and the fetch of the first records with it
				t.Fatalf("told %+v", e)
			}
		case <-time.After(every):
		}
	}
	check(t, open.AbortTxn())
	produce(t, topic, 0, numbered(1)...)
	s.journal.wait(t, 4)
	s.stop()
}

func readCommitted(c *ackpolicy.SubscriberConfig) {
	c.Kafka.OverwriteSaramaConfig.Consumer.IsolationLevel = sarama.ReadCommitted
}

// begin opens a transaction and writes records in it.
func begin(t testing.TB, topic string, records int) sarama.SyncProducer {
	t.Helper()
	return beginAt(t, shared, topic, records)
}

func beginAt(t testing.TB, broker *brokertest.Broker, topic string, records int) sarama.SyncProducer {
	t.Helper()
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	cfg.Producer.Partitioner = sarama.NewManualPartitioner
	cfg.Producer.Return.Successes = true
	cfg.Producer.RequiredAcks = sarama.WaitForAll
	cfg.Producer.Idempotent = true
	cfg.Net.MaxOpenRequests = 1
	cfg.Producer.Transaction.ID = brokertest.Group(t)
	producer, err := sarama.NewSyncProducer(broker.Addrs(), cfg)
	check(t, err)
	check(t, producer.BeginTxn())
	for i := range records {
		_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: topic, Value: sarama.ByteEncoder(numbered(records)[i].Value)})
		check(t, err)
	}
	return producer
}

// transact writes records in a transaction, and commits or aborts it.
func transact(t testing.TB, topic string, records int, commit bool) {
	t.Helper()
	producer := begin(t, topic, records)
	if commit {
		check(t, producer.CommitTxn())
	} else {
		check(t, producer.AbortTxn())
	}
	check(t, producer.Close())
}
