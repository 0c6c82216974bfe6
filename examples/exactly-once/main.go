// Exactly-once is a service that reads payments and publishes an entry for each (copy.go). This file runs it as another
// process, kills that at random while it works, and starts it again. Then it reads the entries, as a consumer with
// read_committed does, and checks that there is one for each payment.
//
//	go run ./examples/exactly-once                              # on a broker inside this process
//	KAFKA_BROKERS=localhost:9092 go run ./examples/exactly-once # on a real one
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

const (
	timeout    = 2 * time.Minute
	partitions = 3
	perRound   = 600
	kills      = 3
	// childEnv has the service that this program runs as another process.
	childEnv = "ACKPOLICY_EXAMPLE_SERVICE"
)

func main() {
	run := parent
	if _, ok := os.LookupEnv(childEnv); ok {
		run = child
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "\nexactly-once: %v\n", err)
		os.Exit(1)
	}
}

// child runs the service until it is killed, or its input ends.
func child() error {
	var s service
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &s); err != nil {
		return err
	}
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
	id := fmt.Sprintf("%08x", rand.Uint32())
	s := service{Brokers: broker.Addrs(), Payments: "payments-" + id, Entries: "entries-" + id, Group: "booking-" + id}
	for _, topic := range []string{s.Payments, s.Entries} {
		if err := brokertest.CreateTopic(s.Brokers, topic, partitions); err != nil {
			return err
		}
	}
	payments := 0
	for kill := range kills {
		if err := s.pay(payments, perRound); err != nil {
			return err
		}
		stopAt := payments + rand.N(perRound) // payments that are booked when it dies
		payments += perRound
		if err := s.runUntil(ctx, stopAt, true); err != nil {
			return err
		}
		fmt.Printf("killed %d times, %d payments so far\n", kill+1, payments)
	}
	if err := s.runUntil(ctx, payments, false); err != nil {
		return err
	}
	return s.check(payments)
}

// pay produces payments.
func (s service) pay(from, n int) error {
	for p := range partitions {
		var records []brokertest.Record
		for id := from + p; id < from+n; id += partitions {
			records = append(records, brokertest.KeyValue(fmt.Sprint(id%50), fmt.Sprintf(`{"ID":%d}`, id)))
		}
		if _, err := brokertest.Produce(s.Brokers, s.Payments, int32(p), records...); err != nil {
			return err
		}
	}
	return nil
}

// runUntil runs the service until so many payments are booked, and then kills it, or stops it as a deploy does.
func (s service) runUntil(ctx context.Context, booked int, kill bool) error {
	return brokertest.RunUntil(ctx, childEnv, s, func() error {
		return brokertest.WaitCommittedAll(ctx, s.Brokers, s.Group, s.Payments, int64(booked))
	}, kill)
}

// check reads all entries.
func (s service) check(payments int) error {
	entries := map[int]int{}
	for p := range int32(partitions) {
		if err := brokertest.Read(s.Brokers, s.Entries, p, timeout/4, func(m *sarama.ConsumerMessage) error {
			var e entry
			err := json.Unmarshal(m.Value, &e)
			entries[e.Payment]++
			return err
		}); err != nil {
			return err
		}
	}
	for id := range payments {
		if n := entries[id]; n != 1 {
			return fmt.Errorf("payment %d has %d entries", id, n)
		}
	}
	fmt.Printf("each of %d payments has one entry\n", payments)
	return nil
}
