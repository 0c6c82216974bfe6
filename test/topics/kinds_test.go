package topics_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A batch has records of several topics, those of each partition in order, unless it is to have those of one only. The
// letter of one goes where those of its own topic go, and offsets are stored per topic.
func TestBatchesOfSeveralTopics(t *testing.T) {
	t.Parallel()
	const each = 10
	poison := func(d *ackpolicy.Delivery, topic string) bool {
		return d.Topic() == topic && d.Partition() == 1 && d.Offset() == 4
	}
	for _, one := range []bool{false, true} {
		t.Run(fmt.Sprint("of one partition: ", one), func(t *testing.T) {
			t.Parallel()
			group, prefix := brokertest.Group(t), brokertest.Topic(t)
			a, b, c := prefix+".a", prefix+".b", brokertest.Topic(t)
			topics := []string{a, b, c}
			create(t, topics...)
			for _, topic := range topics {
				fill(t, topic, each)
			}
			config := ackpolicy.BatchConfig{Size: len(topics) * partitions * each, Wait: time.Minute, OnePartition: one}
			if one {
				config.Size = each
			}
			var got handled
			var mu sync.Mutex
			var batches [][]*ackpolicy.Delivery
			handler := func(_ context.Context, messages []*message.Message) error {
				var ds []*ackpolicy.Delivery
				failed := ackpolicy.BatchError{}
				for i, msg := range messages {
					d, _ := ackpolicy.FromMessage(msg)
					got.add(d)
					ds = append(ds, d)
					if poison(d, b) {
						failed[i] = ackpolicy.RejectWith(testkit.ErrPoison)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				batches = append(batches, ds)
				return failed
			}
			cfg := testkit.Config(group, soon, testkit.Ordering(ackpolicy.OrderByKey, 0), testkit.DeadLetterTopic)
			s := testkit.NewService(t)
			s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			s.Router.AddConsumerHandler("handler", prefix+".*,"+c, testkit.NewSubscriber(t, cfg, s.Log).Batches(config), ackpolicy.HandleBatch(handler))
			s.Start(t)
			stored(t, group, each, topics...)
			s.Stop()
			for _, topic := range topics {
				got.wantOnce(t, topic, each, each)
			}
			if letter := testkit.Letters(t, b+".dlq", 1, 1)[0]; testkit.Headers(letter)[ackpolicy.HeaderTopic] != b {
				t.Errorf("the letter's headers: %v", testkit.Headers(letter))
			}
			if want := map[bool]int{false: 1, true: len(topics) * partitions}[one]; len(batches) != want {
				t.Errorf("%d batches, want %d", len(batches), want)
			}
		})
	}
}

// What is published for records of several topics is stored once, with the offsets and the letters of each topic, over a
// restart and for a topic that is created later.
func TestTransactionsOfSeveralTopics(t *testing.T) {
	t.Parallel()
	const each = 60
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		group, prefix, out := brokertest.Group(t), brokertest.Topic(t), testkit.NewTopic(t, 1)
		a, b, late := prefix+".a", prefix+".b", prefix+".late"
		create(t, a, b, a+".dlq", b+".dlq", late+".dlq")
		fill(t, a, each)
		fill(t, b, each)
		rejected := func(offset int64) bool { return offset == 17 }
		cfg := testkit.Config(group, soon, rebalance, testkit.Ordering(ackpolicy.OrderByKey, 8), testkit.DeadLetterTopic)
		cfg.Transactions = &ackpolicy.Transactions{Interval: 50 * time.Millisecond}
		start := func() *testkit.Service {
			s := testkit.NewService(t)
			sub := testkit.NewSubscriber(t, cfg, s.Log)
			pub, err := sub.Publisher(kafka.PublisherConfig{Marshaler: kafka.DefaultMarshaler{}})
			testkit.Check(t, err)
			s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
			s.Router.AddHandler("copy", prefix+".*", sub, out, pub, func(msg *message.Message) ([]*message.Message, error) {
				d, _ := ackpolicy.FromMessage(msg)
				switch {
				case rejected(d.Offset()):
					return nil, ackpolicy.RejectWith(testkit.ErrPoison)
				case d.Offset()%10 == 3 && d.Attempt() == 1:
					return nil, testkit.ErrBoom
				}
				return message.Messages{message.NewMessage(watermill.NewUUID(), fmt.Appendf(nil, "%s/%d/%d", d.Topic(), d.Partition(), d.Offset()))}, nil
			})
			s.Start(t)
			return s
		}
		s := start()
		testkit.Eventually(t, "the first transactions", func() bool {
			offset, err := brokertest.Committed(testkit.Shared.Addrs(), group, b, 0)
			return err == nil && offset > 0
		})
		s.Stop()
		s = start()
		create(t, late)
		fill(t, late, each)
		topics := []string{a, b, late}
		stored(t, group, each, topics...)
		s.Stop()

		var got, want []string
		testkit.Check(t, brokertest.Read(testkit.Shared.Addrs(), out, 0, testkit.Patience, func(m *sarama.ConsumerMessage) error {
			got = append(got, string(m.Value))
			return nil
		}))
		for _, topic := range topics {
			for p := range int32(partitions) {
				for offset := range int64(each) {
					if !rejected(offset) {
						want = append(want, fmt.Sprintf("%s/%d/%d", topic, p, offset))
					}
				}
				letters := 0
				testkit.Check(t, brokertest.Read(testkit.Shared.Addrs(), topic+".dlq", p, testkit.Patience, func(*sarama.ConsumerMessage) error {
					letters++
					return nil
				}))
				if letters != 1 {
					t.Errorf("%s/%d: %d letters, want 1", topic, p, letters)
				}
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%d outputs, want %d, each once:\n%v", len(got), len(want), got)
		}
	})
}
