// Service is the complete service of the README: it charges orders and publishes invoices (service.go). This file runs
// it on six orders: one cannot be read, one is of an unknown customer, and one fails until a later order of another
// customer is charged. Then it checks that each order was charged once, in its customer's order, or became a dead letter.
//
//	go run ./examples/service                              # on a broker inside this process
//	KAFKA_BROKERS=localhost:9092 go run ./examples/service # on a real one
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

type order struct{ ID, Customer string }

type invoice struct{ Order, Customer string }

const timeout = 30 * time.Second

var orders = []brokertest.Record{
	brokertest.KeyValue("ada", `{"ID":"1","Customer":"ada"}`),
	brokertest.KeyValue("bob", `{"ID":"2","Customer":"bob"}`), // fails until order 4 is charged
	brokertest.KeyValue("bob", `{"ID":"3","Customer":"bob"}`), // waits for order 2
	brokertest.KeyValue("ada", `{"ID":"4","Customer":"ada"}`), // does not
	brokertest.KeyValue("cyd", `{"ID":"5","Customer":"cyd"}`), // an unknown customer
	brokertest.KeyValue("ada", `not JSON`),
}

// payments is the payment provider.
type payments struct {
	mu      sync.Mutex
	charged []string // the orders, in the order of their charges
}

func (p *payments) charge(_ context.Context, o order) (invoice, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o.Customer == "cyd" {
		return invoice{}, fmt.Errorf("order %s: %w", o.ID, errUnknownCustomer)
	}
	if o.ID == "2" && !slices.Contains(p.charged, "4") {
		return invoice{}, errors.New("payment provider unavailable")
	}
	p.charged = append(p.charged, o.ID)
	return invoice{o.ID, o.Customer}, nil
}

func main() {
	if err := run(watermill.NewStdLogger(false, false)); err != nil {
		fmt.Fprintf(os.Stderr, "\nservice: %v\n", err)
		os.Exit(1)
	}
}

// run starts the service on its orders, stops it once they are through, and checks what became of them.
func run(logger watermill.LoggerAdapter) error {
	broker, err := brokertest.Start()
	if err != nil {
		return err
	}
	defer broker.Close()
	var before [2]int64 // a real broker keeps what earlier runs left
	for i, topic := range []string{"invoices", "orders.dlq", "orders"} {
		if err := brokertest.CreateTopic(broker.Addrs(), topic, 1); err != nil && !errors.Is(err, sarama.ErrTopicAlreadyExists) {
			return err
		}
		if i < len(before) {
			if before[i], err = brokertest.EndOffset(broker.Addrs(), topic, 0); err != nil {
				return err
			}
		}
	}
	first, err := brokertest.Produce(broker.Addrs(), "orders", 0, orders...)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	provider := &payments{}
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, broker.Addrs(), provider.charge, logger) }()
	waited := brokertest.WaitCommitted(broker.Addrs(), "billing", "orders", 0, first+int64(len(orders)), timeout/2)
	cancel()
	if err := errors.Join(waited, <-ended); err != nil {
		return err
	}
	invoices, err := brokertest.EndOffset(broker.Addrs(), "invoices", 0)
	if err != nil {
		return err
	}
	letters, err := brokertest.EndOffset(broker.Addrs(), "orders.dlq", 0)
	if err != nil {
		return err
	}

	at := func(id string) int { return slices.Index(provider.charged, id) }
	fmt.Printf("charged: orders %s; invoices: %d; dead letters: %d\n", strings.Join(provider.charged, ", "), invoices-before[0], letters-before[1])
	switch {
	case len(provider.charged) != 4 || invoices-before[0] != 4:
		return errors.New("want four orders charged, once each, and four invoices")
	case at("2") > at("3"):
		return errors.New("want bob's orders charged in order")
	case letters-before[1] != 2:
		return errors.New("want two dead letters")
	}
	return nil
}
