// Dropin runs one application twice, on the same five orders of which the second can never be handled: as it is on
// watermill-kafka (before/orders.go), then moved over (after/orders.go). It prints the diff between the two files, what
// became of the orders, and compares both with what they should be.
//
//	go run ./examples/dropin                              # on a broker inside of this process
//	KAFKA_BROKERS=localhost:9092 go run ./examples/dropin # on a real one
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	after "github.com/ackpolicy/watermill-ackpolicy/examples/dropin/after"
	before "github.com/ackpolicy/watermill-ackpolicy/examples/dropin/before"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

//go:embed before/orders.go
var beforeSource string

//go:embed after/orders.go
var afterSource string

var orders = []string{"1001", "1002", "1003", "1004", "1005"}

const (
	poison  = "1002"
	enough  = 10 // deliveries of the poison order after which nobody waits for a miracle
	timeout = 20 * time.Second
)

type run func(context.Context, []string, string, string, message.NoPublishHandlerFunc, watermill.LoggerAdapter) error

func main() {
	if err := compare(); err != nil {
		fmt.Fprintf(os.Stderr, "\ndropin: %v\n", err)
		os.Exit(1)
	}
}

func compare() error {
	broker, err := brokertest.Start()
	if err != nil {
		return err
	}
	defer broker.Close()

	lines, added, removed := diff(beforeSource, afterSource, 2)
	fmt.Printf("--- before/orders.go\n+++ after/orders.go\n%s\n", lines)

	stock, err := try(broker.Addrs(), "before", before.Run, 1)
	if err != nil {
		return fmt.Errorf("before: %w", err)
	}
	fmt.Printf("before, on watermill-kafka:\n%v", stock)
	ours, err := try(broker.Addrs(), "after", after.Run, int64(len(orders)))
	if err != nil {
		return fmt.Errorf("after: %w", err)
	}
	fmt.Printf("after, on ackpolicy with RejectOnError:\n%v", ours)

	return errors.Join(
		differs("lines added by the diff", added, 3),
		differs("lines removed by the diff", removed, 1),

		differs("before: deliveries of the first order", stock.delivered["1001"], 1),
		differs("before: the poison order was delivered again and again", stock.delivered[poison] >= enough, true),
		differs("before: orders that were reached", len(stock.delivered), 2),
		differs("before: the stored offset", stock.stored, 1),

		differs("after: deliveries", fmt.Sprint(ours.delivered), "map[1001:1 1002:1 1003:1 1004:1 1005:1]"),
		differs("after: rejects in the log", len(ours.logged), 1),
		differs("after: the stored offset", ours.stored, int64(len(orders))),
	)
}

func differs[T comparable](what string, got, want T) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("%s: got %v, want %v", what, got, want)
}

// outcome is what became of the orders.
type outcome struct {
	delivered map[string]int
	stored    int64
	took      time.Duration
	logged    []string
}

func (o outcome) String() string {
	text := ""
	for _, order := range orders {
		fate := "handled"
		switch {
		case o.delivered[order] == 0:
			fate = "never reached"
		case order == poison:
			fate = "failed every time"
		}
		text += fmt.Sprintf("  order %s  delivered %2d×  %s\n", order, o.delivered[order], fate)
	}
	for _, line := range o.logged {
		text += fmt.Sprintf("  logged: %s\n", line)
	}
	return text + fmt.Sprintf("  offset stored by Kafka: %d of %d, after %.1f s\n\n", o.stored, len(orders), o.took.Seconds())
}

// try runs the application until all orders are through, or the poison order has come back often enough, and then waits
// for the offset that Kafka is to store.
func try(brokers []string, name string, run run, offset int64) (outcome, error) {
	suffix := fmt.Sprintf("%s-%08x", name, rand.Uint32()) // a real broker remembers earlier runs
	topic, group := "orders-"+suffix, "shop-"+suffix
	if err := brokertest.CreateTopic(brokers, topic, 1); err != nil {
		return outcome{}, err
	}
	if _, err := brokertest.Produce(brokers, topic, 0, brokertest.Values(orders...)...); err != nil {
		return outcome{}, err
	}

	var mu sync.Mutex
	delivered := map[string]int{}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	handler := func(msg *message.Message) error {
		mu.Lock()
		defer mu.Unlock()
		order := string(msg.Payload)
		delivered[order]++
		if len(delivered) == len(orders) || delivered[poison] == enough {
			// Not before this handler's own end has been seen to.
			time.AfterFunc(200*time.Millisecond, cancel)
		}
		if order == poison {
			return errors.New("negative quantity")
		}
		return nil
	}
	log := errorLog{lines: &lines{}}
	started := time.Now()
	if err := run(ctx, brokers, group, topic, handler, log); err != nil {
		return outcome{}, err
	}
	took := time.Since(started)
	mu.Lock()
	defer mu.Unlock()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return outcome{}, fmt.Errorf("not done within %v; delivered: %v", timeout, delivered)
	}
	// The stock subscriber may still be saying goodbye: the Router does not wait for it when its context ends.
	if err := brokertest.WaitCommitted(brokers, group, topic, 0, offset, 10*time.Second); err != nil {
		return outcome{}, err
	}
	stored, err := brokertest.Committed(brokers, group, topic, 0)
	return outcome{delivered, stored, took, log.all()}, err
}
