package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// shop reads orders, books each of them in a database, and publishes a confirmation.
type shop struct {
	Brokers                      []string
	Orders, Confirmations, Group string
	Database                     string

	books *books
}

type order struct {
	ID, Item, Pieces int
}

type confirmation struct{ Order, Left int }

func (s *shop) router(logger watermill.LoggerAdapter) (*message.Router, error) {
	cfg := kafka.DefaultSaramaSubscriberConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	cfg.Consumer.Group.Session.Timeout = 6 * time.Second // after which a killed process is given up
	cfg.Consumer.Group.Heartbeat.Interval = time.Second
	sub, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
		Kafka:        kafka.SubscriberConfig{Brokers: s.Brokers, ConsumerGroup: s.Group, OverwriteSaramaConfig: cfg},
		Ordering:     ackpolicy.OrderByKey,
		Transactions: &ackpolicy.Transactions{Timeout: 2 * time.Second},
	}, logger)
	if err != nil {
		return nil, err
	}
	pub, err := sub.Publisher(kafka.PublisherConfig{})
	if err != nil {
		return nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, err
	}
	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	router.AddHandler("confirm", s.Orders, sub, s.Confirmations, pub, s.confirm)
	return router, nil
}

var errAway = errors.New("the mail server is away")

// confirm runs at least once for each order. What it does to the database happens once, and what it returns is the
// same each time: Transactions has it appear once.
func (s *shop) confirm(msg *message.Message) ([]*message.Message, error) {
	var o order
	if err := json.Unmarshal(msg.Payload, &o); err != nil {
		return nil, ackpolicy.RejectWith(err)
	}
	d, _ := ackpolicy.FromMessage(msg)
	output, err := s.books.once(msg.Context(), d, func(tx *transaction) ([]byte, error) {
		left, err := tx.take(o)
		if err != nil {
			return nil, err
		}
		return json.Marshal(confirmation{o.ID, left})
	})
	if err != nil {
		return nil, err
	}
	if o.ID%10 == 7 && d.Attempt() == 1 { // the order is booked, and the record comes again
		return nil, fmt.Errorf("order %d: %w", o.ID, errAway)
	}
	return message.Messages{message.NewMessage(watermill.NewUUID(), output)}, nil
}
