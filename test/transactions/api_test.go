package transactions_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestWhatContradictsTransactions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change testkit.Option
		want   string
	}{
		"no group":            {func(c *ackpolicy.SubscriberConfig) { c.Kafka.ConsumerGroup = "" }, "Kafka.ConsumerGroup"},
		"AckFirst":            {func(c *ackpolicy.SubscriberConfig) { c.Policy = new(ackpolicy.AckFirst) }, "choose another Policy"},
		"an old version":      {func(c *ackpolicy.SubscriberConfig) { c.Kafka.OverwriteSaramaConfig.Version = sarama.V2_4_0_0 }, "Version: 2.4.0"},
		"a negative interval": {func(c *ackpolicy.SubscriberConfig) { c.Transactions.Interval = -1 }, "Transactions.Interval"},
		"a short timeout":     {func(c *ackpolicy.SubscriberConfig) { c.Transactions.Timeout = 1 }, "Transactions.Timeout"},
		"another dead letter": {func(c *ackpolicy.SubscriberConfig) { c.DeadLetter = &testkit.Flaky{} }, "DeadLetterTopic"},
		"letters to elsewhere": {func(c *ackpolicy.SubscriberConfig) {
			c.DeadLetter = ackpolicy.DeadLetterTopic{Brokers: []string{"other:1"}}
		}, "leave Brokers and Config"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testkit.Config("group")
			cfg.Transactions = &ackpolicy.Transactions{}
			c.change(&cfg)
			if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Validate: %v, want %q", err, c.want)
			}
		})
	}
}

func TestWhatContradictsPublisher(t *testing.T) {
	t.Parallel()
	plain := testkit.NewSubscriber(t, testkit.Config("group"), nil)
	if _, err := plain.Publisher(kafka.PublisherConfig{}); err == nil || !strings.Contains(err.Error(), "set SubscriberConfig.Transactions") {
		t.Error("without transactions:", err)
	}
	cfg := testkit.Config("group")
	cfg.Transactions = &ackpolicy.Transactions{}
	sub := testkit.NewSubscriber(t, cfg, nil)
	for name, config := range map[string]kafka.PublisherConfig{
		"Brokers":               {Brokers: []string{"other:1"}},
		"Tracer":                {Tracer: kafka.NewOTELSaramaTracer()},
		"OverwriteSaramaConfig": {OverwriteSaramaConfig: &sarama.Config{Version: sarama.V2_8_0_0}},
	} {
		if _, err := sub.Publisher(config); err == nil || !strings.Contains(err.Error(), "Publisher: "+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := sub.Batches(ackpolicy.BatchConfig{}).Subscribe(context.Background(), "topic"); err == nil || !strings.Contains(err.Error(), "batches are not supported") {
		t.Error("batches:", err)
	}
	first, err := sub.Publisher(kafka.PublisherConfig{})
	testkit.Check(t, err)
	if _, err := sub.Publisher(kafka.PublisherConfig{OverwriteSaramaConfig: sarama.NewConfig()}); err == nil {
		t.Error("two Publishers have different producers")
	}
	if err := first.Publish("topic", message.NewMessage("1", nil)); !errors.Is(err, ackpolicy.ErrNoDelivery) {
		t.Error("without a delivery:", err)
	}
	if !strings.Contains(sub.Guarantees(), "exactly once") {
		t.Error(sub.Guarantees())
	}
}

// bed is a subscriber with transactions, its publisher, and an input topic with some records.
type bed struct {
	*testkit.Service
	sub     *ackpolicy.Subscriber
	pub     message.Publisher
	in, out string
}

func newBed(t *testing.T, records int, options ...testkit.Option) *bed {
	t.Helper()
	b := &bed{Service: testkit.NewService(t), in: testkit.FilledTopic(t, 1, records), out: testkit.NewTopic(t, 1)}
	cfg := testkit.Config(brokertest.Group(t), options...)
	if cfg.Transactions == nil {
		cfg.Transactions = &ackpolicy.Transactions{}
	}
	b.sub = testkit.NewSubscriber(t, cfg, b.Log)
	var err error
	b.pub, err = b.sub.Publisher(kafka.PublisherConfig{})
	testkit.Check(t, err)
	return b
}

// onDemand leaves all transactions to those who wait for one, and to the end.
func onDemand(c *ackpolicy.SubscriberConfig) {
	c.Transactions = &ackpolicy.Transactions{Interval: time.Hour}
}

// values stops the service and returns what it has written.
func (b *bed) values(t *testing.T) string {
	t.Helper()
	b.Stop()
	var values []string
	for _, m := range committed(t, b.out, 0) {
		values = append(values, string(m.Value))
	}
	return strings.Join(values, " ")
}

func text(format string, args ...any) *message.Message {
	return message.NewMessage(watermill.NewUUID(), fmt.Appendf(nil, format, args...))
}

// AckSync returns once the transaction is stored: readers of the output see what was published before.
func TestAckSyncWaitsForTheTransaction(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, onDemand)
	done := make(chan error, 1)
	b.Router.AddConsumerHandler("handler", b.in, b.sub, func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		out := text("before")
		out.SetContext(msg.Context())
		err := b.pub.Publish(b.out, out)
		if err == nil {
			err = d.AckSync(context.Background())
		}
		after := text("after")
		after.SetContext(msg.Context())
		if late := b.pub.Publish(b.out, after); !errors.Is(late, ackpolicy.ErrSettled) {
			err = errors.Join(err, fmt.Errorf("a late Publish: %w", late))
		}
		done <- err
		return nil
	})
	b.Router.AddMiddleware(ackpolicy.Manual.Middleware)
	b.Start(t)
	testkit.Check(t, testkit.Await(t, "AckSync", done))
	if got := b.values(t); got != "before" {
		t.Errorf("written: %q", got)
	}
}

// What a failed try published is not written, whoever tries again.
func TestRetryPublishesOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t, 3)
	bus, err := cqrs.NewEventBusWithConfig(b.pub, cqrs.EventBusConfig{
		GeneratePublishTopic: func(cqrs.GenerateEventPublishTopicParams) (string, error) { return b.out, nil },
		Marshaler:            cqrs.JSONMarshaler{},
	})
	testkit.Check(t, err)
	tries := map[int64]int{}
	b.Router.AddMiddleware(ackpolicy.NackOnError.Middleware, middleware.Retry{MaxRetries: 3}.Middleware, ackpolicy.RestoreContext)
	b.Router.AddConsumerHandler("handler", b.in, b.sub, func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		tries[d.Offset()]++ // one handler at a time
		if err := bus.Publish(msg.Context(), fmt.Sprintf("%d#%d", d.Offset(), tries[d.Offset()])); err != nil {
			return err
		}
		if tries[d.Offset()] < 3 {
			return errFlaky
		}
		return nil
	})
	b.Start(t)
	testkit.Eventually(t, "all records to be settled", func() bool {
		committed, err := brokertest.Committed(testkit.Shared.Addrs(), b.sub.State().ConsumerGroup, b.in, 0)
		return err == nil && committed == 3
	})
	if got := b.values(t); got != `"0#3" "1#3" "2#3"` {
		t.Errorf("written: %s", got)
	}
}

// The last transaction is part of Close.
func TestCloseWritesTheLastTransaction(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, onDemand)
	handled := make(chan struct{})
	b.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	b.Router.AddHandler("handler", b.in, b.sub, b.out, b.pub, func(*message.Message) ([]*message.Message, error) {
		close(handled)
		return message.Messages{text("last")}, nil
	})
	b.Start(t)
	testkit.Await(t, "the handler", handled)
	if got := b.values(t); got != "last" {
		t.Errorf("written: %q", got)
	}
}

// A Middleware whose policy acks first is refused: its handler does not run.
func TestAckFirstIsRefused(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.Router.AddMiddleware(ackpolicy.AckFirst.Middleware)
	b.Router.AddConsumerHandler("handler", b.in, b.sub, func(*message.Message) error {
		t.Error("the handler ran")
		return nil
	})
	b.Start(t)
	testkit.Eventually(t, "the error", func() bool {
		return len(testkit.Containing(b.Log.At("error"), "Transactions", "nothing was acked")) > 0
	})
}

// An output that is too large is refused when it is published, where the policy can deal with it.
func TestTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	failed := make(chan error, 100)
	b.Router.AddMiddleware(ackpolicy.Ack.Middleware)
	b.Router.AddConsumerHandler("handler", b.in, b.sub, func(msg *message.Message) error {
		out := message.NewMessage("1", make([]byte, 2<<20))
		out.SetContext(msg.Context())
		failed <- b.pub.Publish(b.out, out)
		return nil
	})
	b.Start(t)
	if err := testkit.Await(t, "Publish", failed); !errors.Is(err, sarama.ErrMessageSizeTooLarge) {
		t.Error(err)
	}
}

// A producer that is configured to wait for more messages does not keep a transaction from being written.
func TestFlushSettings(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1, onDemand, func(c *ackpolicy.SubscriberConfig) { c.Kafka.OverwriteSaramaConfig.Producer.Flush.Messages = 1000 })
	done := make(chan error, 1)
	b.Router.AddConsumerHandler("handler", b.in, b.sub, func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		out := text("one")
		out.SetContext(msg.Context())
		done <- errors.Join(b.pub.Publish(b.out, out), d.AckSync(context.Background()))
		return nil
	})
	b.Router.AddMiddleware(ackpolicy.Manual.Middleware)
	b.Start(t)
	testkit.Check(t, testkit.Await(t, "AckSync", done))
	if got := b.values(t); got != "one" {
		t.Errorf("written: %q", got)
	}
}
