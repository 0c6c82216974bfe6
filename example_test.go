package ackpolicy_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// The README shows some of this code: TestREADMEShowsCodeThatCompiles in examples/service compares the two.

// exampleTopic returns the configuration of a consumer group, and a topic that holds the values in its one partition.
// The broker runs inside this process, or is the one that KAFKA_BROKERS names.
func exampleTopic(values ...string) (config kafka.SubscriberConfig, topic string, stop func()) {
	broker := must(brokertest.Start())
	topic = fmt.Sprintf("orders-%08x", rand.Uint32())
	if err := brokertest.CreateTopic(broker.Addrs(), topic, 1); err != nil {
		panic(err)
	}
	must(brokertest.Produce(broker.Addrs(), topic, 0, brokertest.Values(values...)...))
	config = kafka.SubscriberConfig{
		Brokers: broker.Addrs(), ConsumerGroup: "group-of-" + topic, OverwriteSaramaConfig: kafka.DefaultSaramaSubscriberConfig(),
	}
	config.OverwriteSaramaConfig.Consumer.Offsets.Initial = sarama.OffsetOldest
	return config, topic, broker.Close
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// run runs a Router with one handler until done is closed.
func run(config ackpolicy.SubscriberConfig, topic string, middleware message.HandlerMiddleware, handler message.NoPublishHandlerFunc, done <-chan struct{}) {
	subscriber := must(ackpolicy.NewSubscriber(config, nil))
	router := must(message.NewRouter(message.RouterConfig{}, nil))
	router.AddMiddleware(middleware)
	router.AddConsumerHandler("orders", topic, subscriber, handler)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	go func() {
		select {
		case <-done:
		case <-ctx.Done():
			fmt.Println("too slow")
		}
		_ = router.Close()
	}()
	if err := router.Run(context.Background()); err != nil {
		panic(err)
	}
}

// Without a Router, and without the middleware, a Subscriber is read like every other one of Watermill.
func ExampleNewSubscriber() {
	config, topic, stop := exampleTopic("first", "second", "third")
	defer stop()

	subscriber, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{Kafka: config}, watermill.NopLogger{})
	if err != nil {
		panic(err)
	}
	messages, err := subscriber.Subscribe(context.Background(), topic)
	if err != nil {
		panic(err)
	}
	for range 3 {
		msg := <-messages
		fmt.Println(string(msg.Payload))
		msg.Ack()
	}
	if err := subscriber.Close(); err != nil { // commits what is acked, and leaves the group
		panic(err)
	}
	stored, err := brokertest.Committed(config.Brokers, config.ConsumerGroup, topic, 0)
	fmt.Println("committed:", stored, err)
	// Output:
	// first
	// second
	// third
	// committed: 3 <nil>
}

var ErrInvalid = errors.New("invalid order")

// A policy per handler, and another one for some errors.
func ExampleMiddleware_handlers() {
	config, topic, stop := exampleTopic("order 1")
	defer stop()
	logger := watermill.NopLogger{}
	router := must(message.NewRouter(message.RouterConfig{}, logger))

	router.AddMiddleware(ackpolicy.Middleware{
		Policy:   ackpolicy.NackOnError,
		Handlers: map[string]ackpolicy.Policy{"metrics": ackpolicy.AckFirst, "batch": ackpolicy.Manual},
		Classify: ackpolicy.NeverRetry(ErrInvalid), // reject this error at once, and bad JSON
		Logger:   logger,
	}.Middleware)

	var mu sync.Mutex
	deliveries := map[string]int{}
	for _, name := range []string{"charge", "metrics"} {
		config := config
		config.ConsumerGroup += name
		subscriber := must(ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{Kafka: config}, logger))
		router.AddConsumerHandler(name, topic, subscriber, func(*message.Message) error {
			mu.Lock()
			defer mu.Unlock()
			deliveries[name]++
			if deliveries["charge"] == 3 && deliveries["metrics"] == 1 {
				go router.Close()
			}
			if deliveries[name] < 3 {
				return errors.New("database is down")
			}
			return nil
		})
	}
	if err := router.Run(context.Background()); err != nil {
		panic(err)
	}
	fmt.Println("charge, under NackOnError:", deliveries["charge"], "deliveries")
	fmt.Println("metrics, under AckFirst:", deliveries["metrics"], "delivery")
	// Output:
	// charge, under NackOnError: 3 deliveries
	// metrics, under AckFirst: 1 delivery
}

// The verbs settle a record from inside its handler. The policy then has nothing to do.
func ExampleDelivery() {
	config, topic, stop := exampleTopic("valid", "busy", "broken")
	defer stop()
	done := make(chan struct{})

	handler := func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		order := string(msg.Payload)
		switch {
		case order == "busy" && d.Attempt() == 1:
			d.NackAfter(10 * time.Millisecond)
		case order == "broken":
			d.Reject(errors.New("unknown customer"))
		default:
			d.Ack()
		}
		if d.Offset() == 2 {
			defer close(done)
		}
		fmt.Printf("offset %d, attempt %d: %s, %v\n", d.Offset(), d.Attempt(), msg.Payload, d.Status())
		return nil
	}
	run(ackpolicy.SubscriberConfig{Kafka: config}, topic, ackpolicy.NackOnError.Middleware, handler, done)
	// Output:
	// offset 0, attempt 1: valid, acked
	// offset 1, attempt 1: busy, nacked
	// offset 1, attempt 2: busy, acked
	// offset 2, attempt 1: broken, rejected
}

// AckSync returns once Kafka stores that the record is settled.
func ExampleDelivery_AckSync() {
	config, topic, stop := exampleTopic("transfer 1")
	defer stop()
	done := make(chan struct{})

	handler := func(msg *message.Message) error {
		defer close(done)
		d, _ := ackpolicy.FromMessage(msg)
		ctx, cancel := context.WithTimeout(msg.Context(), 10*time.Second)
		defer cancel()
		if err := d.AckSync(ctx); err != nil {
			return err
		}
		stored, err := brokertest.Committed(config.Brokers, config.ConsumerGroup, topic, 0)
		fmt.Println("committed while the handler runs:", stored)
		return err
	}
	run(ackpolicy.SubscriberConfig{Kafka: config}, topic, ackpolicy.Manual.Middleware, handler, done)
	// Output: committed while the handler runs: 1
}

// Under Manual the handler only collects. A batch is written, and its records are acked, when it is full, and also when
// the partition is about to be taken away: what is acked while the partition drains is still committed.
func ExampleDelivery_Draining() {
	config, topic, stop := exampleTopic("1", "2", "3", "4", "5")
	defer stop()
	done := make(chan struct{})

	var mu sync.Mutex
	var batch []*ackpolicy.Delivery
	flush := func() {
		mu.Lock()
		defer mu.Unlock()
		if len(batch) > 0 {
			fmt.Println("write", len(batch))
		}
		for _, d := range batch {
			d.Ack()
		}
		batch = nil
	}
	var watch sync.Once
	handler := func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		watch.Do(func() {
			go func() {
				<-d.Draining()
				flush()
			}()
		})
		mu.Lock()
		batch = append(batch, d)
		full := len(batch) == 3
		mu.Unlock()
		if full {
			flush()
		}
		if d.Offset() == 4 {
			close(done) // stop the Router while a batch is not full
		}
		return nil
	}
	run(ackpolicy.SubscriberConfig{Kafka: config}, topic, ackpolicy.Manual.Middleware, handler, done)
	stored, err := brokertest.Committed(config.Brokers, config.ConsumerGroup, topic, 0)
	fmt.Println("committed:", stored, err)
	// Output:
	// write 3
	// write 2
	// committed: 5 <nil>
}

// A rejected record goes to a topic, with headers that say where it is from and why.
func ExampleDeadLetterTopic() {
	config, topic, stop := exampleTopic("not JSON")
	defer stop()
	done := make(chan struct{})

	subscriber := ackpolicy.SubscriberConfig{
		Kafka:      config,
		MaxAge:     15 * time.Minute,
		Backoff:    ackpolicy.ExponentialBackoff{Max: 30 * time.Second}.Delay,
		DeadLetter: ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}}, // "<topic>.dlq"
		Hooks:      ackpolicy.Hooks{DeadLettered: func(ackpolicy.DeadLetteredEvent) { close(done) }},
	}
	handler := func(*message.Message) error {
		return ackpolicy.RejectWith(errors.New("cannot be read"))
	}
	run(subscriber, topic, ackpolicy.NackOnError.Middleware, handler, done)

	config.ConsumerGroup += "-letters"
	letters := must(ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{Kafka: config}, nil))
	defer letters.Close()
	letter := <-must(letters.Subscribe(context.Background(), topic+".dlq"))
	letter.Ack()
	fmt.Printf("%s: offset %s, attempts %s: %s\n", letter.Payload, letter.Metadata[ackpolicy.HeaderOffset],
		letter.Metadata[ackpolicy.HeaderAttempts], letter.Metadata[ackpolicy.HeaderReason])
	// Output: not JSON: offset 0, attempts 1: cannot be read
}

// Hooks are called one at a time, in the order of the events. Count in them, log, raise an alarm.
func ExampleHooks() {
	config, topic, stop := exampleTopic("1", "2", "3")
	defer stop()
	done := make(chan struct{})

	counts := map[ackpolicy.Status]int{}
	subscriber := ackpolicy.SubscriberConfig{Kafka: config, Hooks: ackpolicy.Hooks{
		Settled: func(e ackpolicy.SettledEvent) {
			if counts[e.Status]++; e.Offset == 2 {
				close(done)
			}
		},
		Revoked: func(e ackpolicy.RevokedEvent) {
			fmt.Println("released at offset", e.Offset)
		},
	}}
	handler := func(msg *message.Message) error {
		if string(msg.Payload) == "2" {
			return errors.New("cannot be read")
		}
		return nil
	}
	run(subscriber, topic, ackpolicy.RejectOnError.Middleware, handler, done)
	fmt.Println("acked:", counts[ackpolicy.Acked], "rejected:", counts[ackpolicy.Rejected])
	// Output:
	// released at offset 3
	// acked: 2 rejected: 1
}

// The delays before the next attempts. By default each is drawn at random between nothing and these limits.
func ExampleExponentialBackoff() {
	backoff := ackpolicy.ExponentialBackoff{Initial: 100 * time.Millisecond, Max: time.Second, NoJitter: true}
	config := ackpolicy.SubscriberConfig{Backoff: backoff.Delay}
	for attempt := 1; attempt <= 5; attempt++ {
		fmt.Println(attempt, config.Backoff(attempt, nil))
	}
	// Output:
	// 1 100ms
	// 2 200ms
	// 3 400ms
	// 4 800ms
	// 5 1s
}

// A signal says from any depth what becomes of the record, whatever the policy is.
func ExampleErrReject() {
	check := func(id string) error {
		return fmt.Errorf("order %s: %w", id, ackpolicy.ErrReject)
	}
	msg := message.NewMessage("7", nil)
	h := ackpolicy.NackOnError.Middleware(func(msg *message.Message) ([]*message.Message, error) {
		return nil, check(msg.UUID)
	})
	_, err := h(msg)
	d, _ := ackpolicy.FromMessage(msg)
	fmt.Println("error:", err, "status:", d.Status())
	// Output: error: <nil> status: rejected
}

// A handler that returns ErrNack, or NackAfter to say when, gets the record again.
func ExampleNackAfter() {
	config, topic, stop := exampleTopic("order 1")
	defer stop()
	done := make(chan struct{})

	busy := func(attempt int) bool { return attempt < 3 }
	handler := func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		if busy(d.Attempt()) {
			return ackpolicy.NackAfter(10 * time.Millisecond)
		}
		fmt.Println("handled at attempt", d.Attempt())
		close(done)
		return nil
	}
	run(ackpolicy.SubscriberConfig{Kafka: config}, topic, ackpolicy.RejectOnError.Middleware, handler, done)
	// Output: handled at attempt 3
}

// A handler of batches: what fails is named by its index.
func ExampleHandleBatch() {
	insert := func(context.Context, *message.Message) error { return nil }
	handler := ackpolicy.HandleBatch(func(ctx context.Context, orders []*message.Message) error {
		failed := ackpolicy.BatchError{}
		for i, order := range orders {
			if err := insert(ctx, order); err != nil {
				failed[i] = err
			}
		}
		if len(failed) > 0 {
			return failed
		}
		return nil
	})
	// router.AddConsumerHandler("orders", "orders", subscriber.Batches(ackpolicy.BatchConfig{Size: 500}), handler)
	fmt.Println(handler(message.NewMessage("1", nil)))
	// Output: <nil>
}
