package faults_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// One of the two topics that a group's members read is deleted: those of the other one continue, and get each record once.
func TestDeletedTopicLeavesTheOtherAlone(t *testing.T) {
	t.Parallel()
	for protocol, rebalance := range testkit.Protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			const services, partitions = 2, 2
			group, kept, deleted := brokertest.Group(t), testkit.NewTopic(t, partitions), testkit.NewTopic(t, partitions)
			var mu sync.Mutex
			var times []time.Time
			offsets := map[[2]int64]int{}
			record := func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Topic() == kept {
					mu.Lock()
					defer mu.Unlock()
					times = append(times, time.Now())
					offsets[[2]int64{int64(d.Partition()), d.Offset()}]++
				}
				return nil
			}
			var all []*testkit.Service
			for range services {
				s := testkit.NewService(t)
				s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
				sub := testkit.NewSubscriber(t, testkit.Config(group, rebalance, noAutoCreate), s.Log)
				for _, topic := range []string{kept, deleted} {
					s.Router.AddConsumerHandler(topic, topic, sub, s.Recorded(record))
				}
				s.Start(t)
				all = append(all, s)
			}
			testkit.Eventually(t, "a group of four", func() bool {
				n, state, err := brokertest.Members(testkit.Shared.Addrs(), group)
				return err == nil && n == 2*services && state == "Stable"
			})
			producer := testkit.StartProducer(t, kept, partitions, 50, 1)
			for p := range int32(partitions) {
				testkit.Produce(t, deleted, p, testkit.Numbered(5)...)
				testkit.WaitCommitted(t, group, deleted, p, 5)
				testkit.Check(t, brokertest.WaitCommitted(testkit.Shared.Addrs(), group, kept, p, 1, testkit.Patience))
			}
			began := time.Now()
			testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error { return a.DeleteTopic(deleted) })
			for _, s := range all {
				testkit.Eventually(t, "a line that names the topic", func() bool { return len(testkit.Containing(s.Log.At("error"), "topic="+deleted)) > 0 })
			}
			handled := func() int {
				mu.Lock()
				defer mu.Unlock()
				return len(times)
			}
			after := handled() + 250
			testkit.Eventually(t, "five more seconds", func() bool { return handled() >= after })
			ends := producer.Finish(t)
			for p, end := range ends {
				testkit.Check(t, brokertest.WaitCommitted(testkit.Shared.Addrs(), group, kept, int32(p), end, testkit.Patience))
			}
			for _, s := range all {
				s.Stop()
			}
			mu.Lock()
			defer mu.Unlock()
			longest, _ := testkit.LongestPause(began, times)
			t.Logf("%s: the longest pause was %v", protocol, longest)
			for _, s := range all { // above all, none was thrown out
				if lines := testkit.Containing(s.Log.At("error"), "topic="+kept); len(lines) > 0 {
					t.Errorf("errors of the other topic:\n%s", strings.Join(lines, "\n"))
				}
			}
			for at, n := range offsets {
				if n > 1 {
					t.Errorf("record %v was handled %d times", at, n)
				}
			}
		})
	}
}

// noAutoCreate keeps a client from creating the topic that it asks for, and has it notice soon what becomes of topics.
func noAutoCreate(c *ackpolicy.SubscriberConfig) {
	cfg := c.Kafka.OverwriteSaramaConfig
	cfg.Metadata.AllowAutoTopicCreation = false
	cfg.Metadata.RefreshFrequency = 200 * time.Millisecond
	cfg.Consumer.Retry.Backoff = 100 * time.Millisecond
}

// recreate makes a topic that is being deleted, and waits until the leaders of its partitions have the new one: for a
// moment longer they take records for the earlier one, which go with it.
func recreate(t *testing.T, topic string, partitions int32) {
	t.Helper()
	testkit.Eventually(t, "the topic's deletion", func() bool {
		err := brokertest.CreateTopic(testkit.Shared.Addrs(), topic, partitions)
		return err == nil
	})
	for p := range partitions {
		testkit.Eventually(t, "an empty partition", func() bool {
			end, err := brokertest.EndOffset(testkit.Shared.Addrs(), topic, p)
			return err == nil && end == 0
		})
	}
}

// Added partitions are consumed once the metadata has them, from their start with Initial: oldest.
func TestPartitionsAdded(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	cfg := testkit.Config(group)
	cfg.Kafka.OverwriteSaramaConfig.Metadata.RefreshFrequency = 200 * time.Millisecond
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 1)
	testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error { return a.CreatePartitions(topic, 3, nil, false) })
	for p := range int32(3) {
		testkit.Produce(t, topic, p, testkit.Numbered(2)...)
	}
	for p := range int32(3) {
		testkit.WaitCommitted(t, group, topic, p, []int64{3, 2, 2}[p])
	}
	s.Stop()
}

// A topic that is deleted and created again is read from its start, and the log says so.
func TestTopicIsReadFromItsNewStart(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t) // and no other test waits for its topics meanwhile
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(5)...)
	group := brokertest.Group(t)
	cfg := testkit.Config(group, at, testkit.DrainTimeout(time.Second))
	cfg.Kafka.OverwriteSaramaConfig.Metadata.RefreshFrequency = 200 * time.Millisecond
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Retry.Backoff = 100 * time.Millisecond
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, 5, testkit.Patience))
	testkit.Check(t, broker.Kfake().DeleteTopic(topic))
	testkit.Check(t, broker.Kfake().CreateTopic(topic, 1, nil))
	_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(3)...)
	testkit.Check(t, err)
	testkit.Eventually(t, "the new records", func() bool {
		all := s.All()
		return len(all) >= 8 && all[len(all)-1].Offset() == 2
	})
	s.Stop()
	s.Want(t, "0#1", "1#1", "2#1", "3#1", "4#1", "0#1", "1#1", "2#1")
	if len(s.Log.At("error")) == 0 {
		t.Error("nothing was reported")
	}
}
