// Package shop is a small service that ships orders, with its tests. They need no broker, open no socket, and wait for
// nothing:
//
//	go test ./examples/testing
package shop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Order is what the topic "orders" has.
type Order struct {
	ID   string
	Item string
}

// Warehouse packs what was ordered.
type Warehouse interface {
	Pack(ctx context.Context, order Order) error
}

// ErrNoStock is returned by a Warehouse that has to wait for a delivery itself.
var ErrNoStock = errors.New("out of stock")

// restock is how long an order waits that cannot be packed.
const restock = time.Hour

type handler struct{ warehouse Warehouse }

// ship has an order packed, and publishes that. An order that is out of stock comes again in an hour; one that cannot
// be read is given up.
func (h handler) ship(msg *message.Message) ([]*message.Message, error) {
	var order Order
	if err := json.Unmarshal(msg.Payload, &order); err != nil {
		return nil, ackpolicy.RejectWith(fmt.Errorf("not an order: %w", err))
	}
	err := h.warehouse.Pack(msg.Context(), order)
	if errors.Is(err, ErrNoStock) {
		return nil, ackpolicy.NackAfter(restock)
	}
	if err != nil {
		return nil, fmt.Errorf("order %s: %w", order.ID, err)
	}
	return []*message.Message{message.NewMessage("shipped "+order.ID, msg.Payload)}, nil
}

// config returns the configuration of the Subscriber. The command that runs the service adds the brokers.
func config(dead ackpolicy.DeadLetter) ackpolicy.SubscriberConfig {
	return ackpolicy.SubscriberConfig{
		Kafka:         kafka.SubscriberConfig{ConsumerGroup: "shop"},
		Ordering:      ackpolicy.OrderByKey,
		Backoff:       ackpolicy.ExponentialBackoff{Initial: time.Second, NoJitter: true}.Delay,
		MaxDeliveries: 4,
		DeadLetter:    dead,
	}
}

// newRouter returns the service.
func newRouter(warehouse Warehouse, sub message.Subscriber, pub message.Publisher, logger watermill.LoggerAdapter) (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, err
	}
	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	router.AddHandler("ship", "orders", sub, "shipped", pub, handler{warehouse}.ship)
	return router, nil
}
