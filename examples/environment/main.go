// Environment configures a Subscriber from a YAML file and environment variables. It handles five orders, one of which
// fails, under the policy that the environment chooses, and checks what became of them. First it shows what a mistake
// in a variable looks like.
//
//	go -C examples/environment run .
//	ACK_POLICY=ack go -C examples/environment run .
//	ACK_POLICY=reject_on_error LETTER_HEADERS=spring go -C examples/environment run .
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

const (
	topic   = "orders"
	letters = "orders.graveyard"
	orders  = 5
	failing = "1002"
	timeout = 30 * time.Second
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "\nenvironment: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	broker, err := brokertest.StartFake()
	if err != nil {
		return err
	}
	defer broker.Close()
	if err := os.Setenv("KAFKA_BROKERS", broker.Addrs()[0]); err != nil {
		return err
	}
	if err := showMistake(); err != nil {
		return err
	}
	if os.Getenv("ACK_POLICY") == "" {
		if err := os.Setenv("ACK_POLICY", "reject_on_error"); err != nil {
			return err
		}
	}
	config, err := load()
	if err != nil {
		return err
	}
	fmt.Printf("policy %v, ordering %v, max age %v, %v\n", *config.Policy, config.Ordering, config.MaxAge, config.OnUnstorable)

	if err := produce(broker.Addrs()); err != nil {
		return err
	}
	handled, err := handle(config)
	if err != nil {
		return err
	}
	return check(broker.Addrs(), *config.Policy, handled)
}

// showMistake prints the error of a variable that is misspelt, and requires that it names what is allowed.
func showMistake() error {
	before, set := os.LookupEnv("ACK_POLICY")
	if err := os.Setenv("ACK_POLICY", "nack_on_eror"); err != nil {
		return err
	}
	_, err := load()
	if err == nil {
		return errors.New("ACK_POLICY=nack_on_eror is taken")
	}
	fmt.Println("a mistake:", err)
	if !set {
		return os.Unsetenv("ACK_POLICY")
	}
	return os.Setenv("ACK_POLICY", before)
}

func produce(brokers []string) error {
	if err := brokertest.CreateTopic(brokers, topic, 1); err != nil {
		return err
	}
	var records []brokertest.Record
	for i := range orders {
		id := fmt.Sprint(1001 + i)
		records = append(records, brokertest.KeyValue(id, id))
	}
	_, err := brokertest.Produce(brokers, topic, 0, records...)
	return err
}

// handle runs a service until the offsets of all orders are stored, and returns which were handled without an error.
func handle(config ackpolicy.SubscriberConfig) (handled []string, err error) {
	config.MaxDeliveries = 3 // or the failing one would take as long as MAX_AGE says
	subscriber, err := ackpolicy.NewSubscriber(config, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	router.AddConsumerHandler("charge", topic, subscriber, func(msg *message.Message) error {
		id := string(msg.Payload)
		if id == failing {
			return errors.New("card declined")
		}
		mu.Lock()
		defer mu.Unlock()
		handled = append(handled, id)
		return nil
	})
	ended := make(chan error, 1)
	go func() { ended <- router.Run(context.Background()) }()
	waited := brokertest.WaitCommitted(config.Kafka.Brokers, config.Kafka.ConsumerGroup, topic, 0, orders, timeout)
	err = errors.Join(waited, router.Close(), <-ended)
	slices.Sort(handled)
	return handled, err
}

// check compares what was handled, and how many letters there are, with what the policy promises.
func check(brokers []string, policy ackpolicy.Policy, handled []string) error {
	stored, err := brokertest.EndOffset(brokers, letters, 0)
	if err != nil {
		return err
	}
	fmt.Printf("handled %v, %d in %s\n", handled, stored, letters)
	want := int64(0)
	if policy == ackpolicy.RejectOnError || policy == ackpolicy.NackOnError {
		want = 1
	}
	if len(handled) != orders-1 || stored != want {
		return fmt.Errorf("want %d orders handled, and %d letters", orders-1, want)
	}
	return nil
}
