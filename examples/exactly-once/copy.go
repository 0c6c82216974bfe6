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

// service reads payments and publishes an entry for each.
type service struct {
	Brokers                  []string
	Payments, Entries, Group string
}

type payment struct{ ID int }

// entry says which payment it is of.
type entry struct {
	Payment   int
	Partition int32
	Offset    int64
}

func (s service) router(logger watermill.LoggerAdapter) (*message.Router, error) {
	cfg := kafka.DefaultSaramaSubscriberConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	cfg.Consumer.Group.Session.Timeout = 6 * time.Second // after which a killed process is given up
	cfg.Consumer.Group.Heartbeat.Interval = time.Second
	sub, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
		Kafka:        kafka.SubscriberConfig{Brokers: s.Brokers, ConsumerGroup: s.Group, OverwriteSaramaConfig: cfg},
		Ordering:     ackpolicy.OrderByKey,
		Transactions: &ackpolicy.Transactions{},
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
	router.AddHandler("book", s.Payments, sub, s.Entries, pub, book)
	return router, nil
}

var errBusy = errors.New("the ledger is busy")

// book fails for every tenth payment the first time.
func book(msg *message.Message) ([]*message.Message, error) {
	var p payment
	if err := json.Unmarshal(msg.Payload, &p); err != nil {
		return nil, ackpolicy.RejectWith(err)
	}
	d, _ := ackpolicy.FromMessage(msg)
	if p.ID%10 == 7 && d.Attempt() == 1 {
		return nil, fmt.Errorf("payment %d: %w", p.ID, errBusy)
	}
	payload, err := json.Marshal(entry{p.ID, d.Partition(), d.Offset()})
	if err != nil {
		return nil, err
	}
	return message.Messages{message.NewMessage(watermill.NewUUID(), payload)}, nil
}
