// Quickstart is a small order service. The same eight orders, most of which fail in some way, go through all five
// policies: each has a topic and a consumer group of its own. At the end it prints what every policy made of every
// order, and which offset Kafka stores, and compares that with what it should be.
//
//	go run ./examples/quickstart                              # on a broker inside of this process
//	KAFKA_BROKERS=localhost:9092 go run ./examples/quickstart # on a real one
//	go run ./examples/quickstart -v                           # with Watermill's logs
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

const (
	timeout        = 30 * time.Second
	commitInterval = 200 * time.Millisecond // a second by default
)

// A service is what one policy runs on: a topic, a group, and a shop that keeps account of what happened.
type service struct {
	policy       ackpolicy.Policy
	topic, group string
	shop         *shop
	stored       int64 // the offset that Kafka stores at the end
	held         int64 // under Manual: the one it stored while the first order was open
}

func main() {
	verbose := flag.Bool("v", false, "show Watermill's logs")
	flag.Parse()
	var logger watermill.LoggerAdapter = watermill.NopLogger{}
	if *verbose {
		logger = watermill.NewStdLogger(false, false)
	}
	if err := run(logger); err != nil {
		fmt.Fprintf(os.Stderr, "\nquickstart: %v\n", err)
		os.Exit(1)
	}
}

func run(logger watermill.LoggerAdapter) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	broker, err := brokertest.Start()
	if err != nil {
		return err
	}
	defer broker.Close()
	where := "a broker inside of this process"
	if broker.Real() {
		where = fmt.Sprintf("the Kafka at %v", broker.Addrs())
	}
	fmt.Printf("%d orders through five policies, on %s.\n\n", len(orders), where)

	services := newServices()
	if err := produce(broker.Addrs(), services, logger); err != nil {
		return err
	}
	router, err := newRouter(broker.Addrs(), services, logger)
	if err != nil {
		return err
	}
	ran := make(chan error, 1)
	go func() { ran <- router.Run(ctx) }()

	waited := wait(ctx, broker.Addrs(), services)
	for _, s := range services {
		s.shop.freeze() // while the deliveries still are ours, and can be asked
	}
	// Close commits what is settled before it returns.
	if err := errors.Join(router.Close(), <-ran); err != nil {
		return errors.Join(waited, err)
	}
	for _, s := range services {
		if s.stored, err = brokertest.Committed(broker.Addrs(), s.group, s.topic, 0); err != nil {
			return err
		}
	}
	printTable(os.Stdout, services)
	return errors.Join(waited, check(services))
}

func newServices() []*service {
	run := fmt.Sprintf("%08x", rand.Uint32()) // a real broker remembers earlier runs
	var services []*service
	for _, policy := range []ackpolicy.Policy{
		ackpolicy.AckFirst, ackpolicy.Ack, ackpolicy.RejectOnError, ackpolicy.NackOnError, ackpolicy.Manual,
	} {
		services = append(services, &service{
			policy: policy,
			topic:  fmt.Sprintf("orders-%s-%s", policy, run),
			group:  fmt.Sprintf("shop-%s-%s", policy, run),
			shop:   newShop(),
		})
	}
	return services
}

// newRouter is the part to copy: a subscriber a group, one middleware, and handlers as Watermill has them.
func newRouter(brokers []string, services []*service, logger watermill.LoggerAdapter) (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, err
	}
	policies := map[string]ackpolicy.Policy{} // by the name of the handler
	for _, s := range services {
		policies[s.topic] = s.policy
	}
	router.AddMiddleware(ackpolicy.Middleware{Handlers: policies, Logger: logger}.Middleware)

	for _, s := range services {
		saramaConfig := kafka.DefaultSaramaSubscriberConfig()
		saramaConfig.Consumer.Offsets.Initial = sarama.OffsetOldest
		subscriber, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
			Kafka: kafka.SubscriberConfig{
				Brokers:               brokers,
				ConsumerGroup:         s.group,
				OverwriteSaramaConfig: saramaConfig,
				NackResendSleep:       50 * time.Millisecond,
			},
			CommitInterval: commitInterval,
		}, logger)
		if err != nil {
			return nil, err
		}
		if s.policy == ackpolicy.Manual {
			router.AddConsumerHandler(s.topic, s.topic, subscriber, s.shop.shipByHand)
			continue
		}
		// The Router publishes the confirmation that ship returns, and only then is the order a success.
		router.AddHandler(s.topic, s.topic, subscriber, "confirmations", s.shop, s.shop.ship)
	}
	return router, nil
}

// produce sends the same orders to the topic of every policy.
func produce(brokers []string, services []*service, logger watermill.LoggerAdapter) error {
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{
		Brokers: brokers, Marshaler: kafka.DefaultMarshaler{},
	}, logger)
	if err != nil {
		return err
	}
	for _, s := range services {
		if err := brokertest.CreateTopic(brokers, s.topic, 1); err != nil {
			return errors.Join(err, publisher.Close())
		}
		for _, order := range orders {
			payload, err := json.Marshal(order)
			if err != nil {
				return errors.Join(err, publisher.Close())
			}
			if err := publisher.Publish(s.topic, message.NewMessage(watermill.NewUUID(), payload)); err != nil {
				return errors.Join(err, publisher.Close())
			}
		}
	}
	return publisher.Close()
}

// wait returns once Kafka stores the offset after the last order for every policy: from then on there is nothing to deliver.
func wait(ctx context.Context, brokers []string, services []*service) error {
	var problems error
	for _, s := range services {
		if s.policy == ackpolicy.Manual {
			problems = errors.Join(problems, settleLate(ctx, brokers, s))
		}
		left := max(0, time.Until(deadline(ctx)))
		problems = errors.Join(problems, brokertest.WaitCommitted(brokers, s.group, s.topic, 0, int64(len(orders)), left))
	}
	return problems
}

func deadline(ctx context.Context) time.Time {
	at, _ := ctx.Deadline()
	return at.Add(-timeout / 4) // what closing may take
}

// settleLate lets the goroutine that holds the first order settle it, after all the others are settled and a commit,
// had there been one, would have happened.
func settleLate(ctx context.Context, brokers []string, s *service) error {
	select {
	case <-s.shop.othersSettled:
	case <-time.After(time.Until(deadline(ctx))):
		return fmt.Errorf("%v: the orders after the first were not settled in time", s.policy)
	}
	time.Sleep(3 * commitInterval)
	var err error
	if s.held, err = brokertest.Committed(brokers, s.group, s.topic, 0); err != nil {
		return err
	}
	close(s.shop.release)
	return nil
}
