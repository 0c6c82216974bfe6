// CQRS is a shop with commands, events and groups of event handlers (shop.go). This file sends it four commands, of which one
// is of an unknown customer, and an event that no handler is for. Then it checks that each order was placed, charged and
// audited once, and that the order of the unknown customer became a dead letter.
//
//	go run ./examples/cqrs                              # on a broker inside this process
//	KAFKA_BROKERS=localhost:9092 go run ./examples/cqrs # on a real one
package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

const timeout = 30 * time.Second

var commands = []PlaceOrder{{"1", "ada"}, {"2", "bob"}, {"3", "cyd"}, {"4", "ada"}}

// handlers is the shop, and what it has done.
type handlers struct {
	events *cqrs.EventBus

	mu       sync.Mutex
	placed   []string
	charged  []string
	attempts map[string]int // to charge an order
	audited  []string
	batch    []*ackpolicy.Delivery
}

func (h *handlers) place(ctx context.Context, c *PlaceOrder) error {
	if c.Customer == "cyd" {
		return ackpolicy.RejectWith(fmt.Errorf("order %s: unknown customer %s", c.ID, c.Customer)) // to the dead letter topic
	}
	h.mu.Lock()
	h.placed = append(h.placed, c.ID)
	h.mu.Unlock()
	return h.events.Publish(ctx, &OrderPlaced{c.ID, c.Customer})
}

func (h *handlers) charge(_ context.Context, e *OrderPlaced) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.attempts[e.ID]++; e.ID == "2" && h.attempts[e.ID] == 1 {
		return errors.New("payment provider unavailable") // bob's order comes again; ada's do not wait for it
	}
	h.charged = append(h.charged, e.ID)
	return nil
}

func (h *handlers) audit(ctx context.Context, e *OrderPlaced) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, _ := ackpolicy.FromContext(ctx)
	h.audited, h.batch = append(h.audited, e.ID), append(h.batch, d)
	if len(h.batch) == 3 { // written together; a real one also writes when d.Draining() is closed
		for _, d := range h.batch {
			d.Ack()
		}
		h.batch = nil
	}
	return nil
}

func main() {
	if err := run(watermill.NewStdLogger(false, false)); err != nil {
		fmt.Fprintf(os.Stderr, "\ncqrs: %v\n", err)
		os.Exit(1)
	}
}

// run sends the commands, runs the shop until they are through, and checks what became of them.
func run(logger watermill.LoggerAdapter) error {
	broker, err := brokertest.Start()
	if err != nil {
		return err
	}
	defer broker.Close()
	prefix := fmt.Sprintf("shop-%08x-", rand.Uint32()) // a real broker remembers earlier runs
	for _, topic := range []string{"commands", "events"} {
		if err := brokertest.CreateTopic(broker.Addrs(), prefix+topic, 1); err != nil {
			return err
		}
	}
	if err := send(broker.Addrs(), prefix, logger); err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	h := &handlers{attempts: map[string]int{}}
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, broker.Addrs(), prefix, func(events *cqrs.EventBus) shop { h.events = events; return h }, logger)
	}()
	committed := func(group, topic string, offset int64) error {
		return brokertest.WaitCommitted(broker.Addrs(), prefix+group, prefix+topic, 0, offset, timeout/2)
	}
	waited := errors.Join(committed("place", "commands", 4), committed("billing", "events", 4), committed("audit", "events", 4))
	cancel()
	if err := errors.Join(waited, <-ended); err != nil {
		return err
	}
	letters, err := brokertest.EndOffset(broker.Addrs(), prefix+"commands.dlq", 0)
	if err != nil {
		return err
	}

	fmt.Printf("placed: %v; charged: %v; audited: %v; attempts to charge: %v; dead letters: %d\n",
		h.placed, h.charged, h.audited, h.attempts, letters)
	want := []string{"1", "2", "4"}
	for what, got := range map[string][]string{"placed": h.placed, "charged": h.charged, "audited": h.audited} {
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("%s: orders %v, want %v", what, got, want)
		}
	}
	if letters != 1 || h.attempts["2"] != 2 {
		return errors.New("want one dead letter, and two attempts to charge order 2")
	}
	return nil
}

// send sends the commands, and an event that no handler is for.
func send(brokers []string, prefix string, logger watermill.LoggerAdapter) error {
	publisher, err := newPublisher(brokers, logger)
	if err != nil {
		return err
	}
	event, err := marshaler.Marshal(CatalogChanged{})
	if err != nil {
		return err
	}
	err = publisher.Publish(prefix+"events", event)
	for _, c := range commands {
		msg, failed := marshaler.Marshal(&c)
		if failed != nil {
			return failed
		}
		msg.Metadata.Set("customer", c.Customer)
		err = errors.Join(err, publisher.Publish(prefix+"commands", msg))
	}
	return errors.Join(err, publisher.Close())
}
