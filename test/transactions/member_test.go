package transactions_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

const childEnv = "ACKPOLICY_TEST_TRANSACTIONS"

// spec is a member that copies a topic: one record out for each record in.
type spec struct {
	Group, In, Out string
	Cooperative    bool
	Timeout        time.Duration  // of transactions
	Change         testkit.Option `json:"-"`
}

func newSpec(t *testing.T, partitions int32, records int) spec {
	t.Helper()
	s := spec{Group: brokertest.Group(t), In: testkit.NewTopic(t, partitions), Out: testkit.NewTopic(t, 2), Timeout: 2 * time.Second}
	testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), s.In+".dlq", partitions))
	for p := range partitions {
		testkit.Produce(t, s.In, p, keyed(p, 0, records)...)
	}
	return s
}

// keyed returns records for a partition, from an offset on.
func keyed(partition int32, from, n int) []brokertest.Record {
	records := make([]brokertest.Record, n)
	for i := range records {
		records[i] = brokertest.KeyValue(fmt.Sprintf("%d-%d", partition, (from+i)%17), "")
	}
	return records
}

func (s spec) config() ackpolicy.SubscriberConfig {
	c := testkit.Config(s.Group, testkit.Ordering(ackpolicy.OrderByKey, 64), testkit.DrainTimeout(5*time.Second), testkit.DeadLetterTopic)
	c.Kafka.OverwriteSaramaConfig.Consumer.Group.Session.Timeout = 3 * time.Second
	c.Kafka.OverwriteSaramaConfig.Consumer.Group.Rebalance.Timeout = 6 * time.Second
	c.Transactions = &ackpolicy.Transactions{Timeout: s.Timeout, Interval: 50 * time.Millisecond}
	if s.Cooperative {
		testkit.BalanceStrategy(sarama.NewBalanceStrategyCooperativeSticky())(&c)
	}
	if s.Change != nil {
		s.Change(&c)
	}
	return c
}

// origin is what an output carries of its input.
type origin struct {
	Partition int32
	Offset    int64
	Key       string
}

var errFlaky = errors.New("fails now and then")

// rejects reports whether the handler rejects a record: one percent of them.
func rejects(offset int64) bool { return offset%100 == 42 }

// handler returns one output per record. What it publishes before it fails or rejects must not appear.
func handler(pub message.Publisher, topic string) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		d, _ := ackpolicy.FromMessage(msg)
		payload, err := json.Marshal(origin{d.Partition(), d.Offset(), string(d.Key())})
		if err != nil {
			return nil, err
		}
		out := message.NewMessage(watermill.NewUUID(), payload)
		rejected, fails := rejects(d.Offset()), d.Offset()%20 == 7 && d.Attempt() == 1
		if rejected || fails {
			out.SetContext(msg.Context()) // as a CQRS bus does
			if err := pub.Publish(topic, out); err != nil {
				return nil, err
			}
		}
		switch {
		case rejected:
			return nil, ackpolicy.RejectWith(testkit.ErrPoison)
		case fails:
			return nil, errFlaky
		}
		return message.Messages{out}, nil
	}
}

func publisherConfig() kafka.PublisherConfig {
	return kafka.PublisherConfig{Marshaler: kafka.NewWithPartitioningMarshaler(func(_ string, msg *message.Message) (string, error) {
		var o origin
		err := json.Unmarshal(msg.Payload, &o)
		return o.Key, err
	})}
}

// router returns a Router that copies.
func (s spec) router(logger watermill.LoggerAdapter) (*message.Router, *ackpolicy.Subscriber, error) {
	sub, err := ackpolicy.NewSubscriber(s.config(), logger)
	if err != nil {
		return nil, nil, err
	}
	pub, err := sub.Publisher(publisherConfig())
	if err != nil {
		return nil, nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, nil, err
	}
	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	router.AddHandler("copy", s.In, sub, s.Out, pub, handler(pub, s.Out))
	return router, sub, nil
}

// Consume implements testkit.Consumer.
func (s spec) Consume(stop io.Reader) error {
	router, _, err := s.router(watermill.NewStdLogger(false, false))
	if err != nil {
		return err
	}
	return testkit.RunUntil(router, stop)
}

// start runs a member in this process until the service is stopped.
func (s spec) start(t *testing.T) *testkit.Service {
	t.Helper()
	service := &testkit.Service{Log: testkit.NewLog(t), Ended: make(chan struct{})}
	var err error
	service.Router, _, err = s.router(service.Log)
	testkit.Check(t, err)
	service.Start(t)
	return service
}
