// Outbox is a service that books orders in a database and publishes a confirmation of each (shop.go, books.go). This
// file runs it as another process, kills that at random while it works, and starts it again. Then it checks that each
// order is booked once, and has one confirmation for a consumer with read_committed.
//
//	go -C examples/outbox run .                              # on a broker inside this process
//	KAFKA_BROKERS=localhost:9092 go -C examples/outbox run . # on a real one
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

const (
	timeout    = 2 * time.Minute
	partitions = 3
	perRound   = 600
	kills      = 2
	items      = 20
	// childEnv has the service that this program runs as another process.
	childEnv = "ACKPOLICY_EXAMPLE_SERVICE"
)

func main() {
	run := parent
	if _, ok := os.LookupEnv(childEnv); ok {
		run = child
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "\noutbox: %v\n", err)
		os.Exit(1)
	}
}

// child runs the service until it is killed, or its input ends.
func child() (err error) {
	var s shop
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &s); err != nil {
		return err
	}
	if s.books, err = openBooks(s.Database); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.books.db.Close()) }()
	router, err := s.router(watermill.NopLogger{})
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = router.Close()
	}()
	return router.Run(context.Background())
}

func parent() error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	broker, err := brokertest.Start()
	if err != nil {
		return err
	}
	defer broker.Close()
	dir, err := os.MkdirTemp("", "outbox")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	id := fmt.Sprintf("%08x", rand.Uint32())
	s := shop{
		Brokers: broker.Addrs(), Orders: "orders-" + id, Confirmations: "confirmations-" + id, Group: "shop-" + id,
		Database: filepath.Join(dir, "shop.db"),
	}
	for _, topic := range []string{s.Orders, s.Confirmations} {
		if err := brokertest.CreateTopic(s.Brokers, topic, partitions); err != nil {
			return err
		}
	}
	orders := 0
	for kill := range kills {
		if err := s.order(orders, perRound); err != nil {
			return err
		}
		stopAt := orders + rand.N(perRound) // orders that are done when it dies
		orders += perRound
		if err := s.runUntil(ctx, stopAt, true); err != nil {
			return err
		}
		fmt.Printf("killed %d times, %d orders so far\n", kill+1, orders)
	}
	if err := s.runUntil(ctx, orders, false); err != nil {
		return err
	}
	return s.check(ctx, orders)
}

// order produces orders.
func (s *shop) order(from, n int) error {
	for p := range partitions {
		var records []brokertest.Record
		for id := from + p; id < from+n; id += partitions {
			payload, err := json.Marshal(order{id, id % items, 1 + id%3})
			if err != nil {
				return err
			}
			records = append(records, brokertest.KeyValue(fmt.Sprint(id%50), string(payload)))
		}
		if _, err := brokertest.Produce(s.Brokers, s.Orders, int32(p), records...); err != nil {
			return err
		}
	}
	return nil
}

// runUntil runs the service until so many orders are done, and then kills it, or stops it as a deploy does.
func (s *shop) runUntil(ctx context.Context, done int, kill bool) error {
	return brokertest.RunUntil(ctx, childEnv, s, func() error {
		return brokertest.WaitCommittedAll(ctx, s.Brokers, s.Group, s.Orders, int64(done))
	}, kill)
}
