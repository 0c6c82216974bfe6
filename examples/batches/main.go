// Batches inserts orders into a store in bulk. The store refuses a whole batch because of one bad row, and does not say
// which. 2,000 orders of 50 customers are sent, of which one has no amount. Then the program checks that the store has
// the other 1,999, once each and those of each customer in order, and that the bad one became a dead letter.
//
//	go run ./examples/batches                              # on a broker inside this process
//	KAFKA_BROKERS=localhost:9092 go run ./examples/batches # on a real one
package main

import (
	"context"
	"errors"
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
	orders    = 2000
	customers = 50
	bad       = 1234
	timeout   = 30 * time.Second
)

// store is a database with a bulk insert.
type store struct {
	inserts int
	rows    []string            // in the order in which they came
	last    map[string]int      // by customer, the last order
	seen    map[string]struct{} // orders
}

// insertAll inserts all orders or none.
func (s *store) insertAll(_ context.Context, batch []*message.Message) error {
	s.inserts++
	for _, msg := range batch {
		if string(msg.Payload) == "" {
			return errors.New("insert: column amount is empty")
		}
	}
	for _, msg := range batch {
		d, _ := ackpolicy.FromMessage(msg)
		order, customer := string(msg.Payload), string(d.Key())
		if _, twice := s.seen[order]; twice {
			return fmt.Errorf("order %s was inserted before", order)
		}
		var number int
		if _, err := fmt.Sscan(order, &number); err != nil {
			return err
		}
		if number < s.last[customer] {
			return fmt.Errorf("order %s of %s comes after order %d", order, customer, s.last[customer])
		}
		s.rows, s.seen[order], s.last[customer] = append(s.rows, order), struct{}{}, number
	}
	return nil
}

func main() {
	if err := run(watermill.NewStdLogger(false, false)); err != nil {
		fmt.Fprintf(os.Stderr, "\nbatches: %v\n", err)
		os.Exit(1)
	}
}

func run(logger watermill.LoggerAdapter) error {
	broker, err := brokertest.Start()
	if err != nil {
		return err
	}
	defer broker.Close()
	topic := fmt.Sprintf("orders-%08x", rand.Uint32()) // a real broker remembers earlier runs
	if err := brokertest.CreateTopic(broker.Addrs(), topic, 1); err != nil {
		return err
	}
	if _, err := brokertest.Produce(broker.Addrs(), topic, 0, records()...); err != nil {
		return err
	}

	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	s := &store{last: map[string]int{}, seen: map[string]struct{}{}}
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, broker.Addrs(), topic, s, logger) }()
	waited := brokertest.WaitCommitted(broker.Addrs(), topic, topic, 0, orders, timeout/2)
	cancel()
	if err := errors.Join(waited, <-ended); err != nil {
		return err
	}
	letters, err := brokertest.EndOffset(broker.Addrs(), topic+".dlq", 0)
	if err != nil {
		return err
	}
	fmt.Printf("%d orders in the store, by %d bulk inserts; dead letters: %d\n", len(s.rows), s.inserts, letters)
	if len(s.rows) != orders-1 || letters != 1 {
		return fmt.Errorf("want %d orders and one dead letter", orders-1)
	}
	return nil
}

// serve inserts orders until ctx ends.
func serve(ctx context.Context, brokers []string, topic string, s *store, logger watermill.LoggerAdapter) error {
	cfg := kafka.DefaultSaramaSubscriberConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	subscriber, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
		Kafka:         kafka.SubscriberConfig{Brokers: brokers, ConsumerGroup: topic, OverwriteSaramaConfig: cfg},
		Ordering:      ackpolicy.OrderByKey,
		MaxDeliveries: 3,
		DeadLetter:    ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}},
	}, logger)
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return err
	}
	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	router.AddConsumerHandler("store", topic,
		subscriber.Batches(ackpolicy.BatchConfig{Size: 500, Wait: 50 * time.Millisecond}),
		ackpolicy.HandleBatch(s.insertAll))
	return router.Run(ctx)
}

// records are the orders, of which one has no amount.
func records() []brokertest.Record {
	all := make([]brokertest.Record, orders)
	for i := range all {
		all[i] = brokertest.KeyValue(fmt.Sprint("customer-", i%customers), fmt.Sprint(i))
	}
	all[bad].Value = nil
	return all
}
