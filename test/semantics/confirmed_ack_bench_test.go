package semantics_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// BenchmarkConfirmedAck measures how long an ack takes to be stored in Kafka on
// an idle partition, where a fetch is always under way: AckSync beside stock
// watermill-kafka with auto-commit disabled, the nearest it has. The figure is p50-ms.
//
//	scripts/kafka.sh run -- go test -run '^$' -bench ConfirmedAck -benchtime 30x ./test/semantics
func BenchmarkConfirmedAck(b *testing.B) {
	b.Run("ackpolicy", func(b *testing.B) {
		cfg := ackpolicy.SubscriberConfig{Kafka: benchConfig(b)}
		sub, err := ackpolicy.NewSubscriber(cfg, watermill.NopLogger{})
		if err != nil {
			b.Fatal(err)
		}
		benchConfirmedAck(b, cfg.Kafka, sub, func(msg *message.Message, _ func() int64) error {
			d, _ := ackpolicy.FromMessage(msg)
			err := d.AckSync(msg.Context())
			msg.Ack()
			return err
		})
	})
	b.Run("stock", func(b *testing.B) {
		cfg := benchConfig(b)
		cfg.OverwriteSaramaConfig.Consumer.Offsets.AutoCommit.Enable = false
		sub, err := kafka.NewSubscriber(cfg, watermill.NopLogger{})
		if err != nil {
			b.Fatal(err)
		}
		// It does not report when the commit is stored, so the group is asked.
		benchConfirmedAck(b, cfg, sub, func(msg *message.Message, stored func() int64) error {
			offset, _ := kafka.MessagePartitionOffsetFromCtx(msg.Context())
			msg.Ack()
			for stored() <= offset {
			}
			return nil
		})
	})
}

func benchConfig(b *testing.B) kafka.SubscriberConfig {
	cfg := kafka.DefaultSaramaSubscriberConfig() // a fetch waits 500 ms for records
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	return kafka.SubscriberConfig{
		Brokers: brokertest.Brokers(b), ConsumerGroup: brokertest.Group(b),
		OverwriteSaramaConfig: cfg,
	}
}

func benchConfirmedAck(b *testing.B, cfg kafka.SubscriberConfig, sub message.Subscriber, ack func(*message.Message, func() int64) error) {
	topic := brokertest.Topic(b)
	if err := brokertest.CreateTopic(cfg.Brokers, topic, 1); err != nil {
		b.Fatal(err)
	}
	messages, err := sub.Subscribe(context.Background(), topic)
	if err != nil {
		b.Fatal(err)
	}
	defer sub.Close()
	stored := func() int64 {
		offset, err := brokertest.Committed(cfg.Brokers, cfg.ConsumerGroup, topic, 0)
		if err != nil {
			b.Fatal(err)
		}
		return offset
	}
	var took []time.Duration
	for b.Loop() {
		if _, err := brokertest.Produce(cfg.Brokers, topic, 0, brokertest.Values("x")...); err != nil {
			b.Fatal(err)
		}
		msg := <-messages
		began := time.Now()
		if err := ack(msg, stored); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
}
