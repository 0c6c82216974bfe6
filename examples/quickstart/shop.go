package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Order is the message. Its trouble is what goes wrong with it.
type Order struct {
	ID      string `json:"id"`
	Trouble string `json:"trouble"`
}

const (
	none      = "no trouble"
	flaky     = "fails the first time"
	stubborn  = "fails twice"
	panics    = "panics the first time"
	invalid   = "invalid: ErrReject"
	busy      = "busy once: NackAfter"
	duplicate = "a duplicate: ErrAck"
	unsent    = "publishing fails once"
)

var orders = []Order{
	{"1001", none}, {"1002", flaky}, {"1003", stubborn}, {"1004", panics},
	{"1005", invalid}, {"1006", busy}, {"1007", duplicate}, {"1008", unsent},
}

// shop handles the orders of one policy. It is the publisher of its confirmations, too.
type shop struct {
	othersSettled chan struct{} // under Manual: all but the first order are settled
	release       chan struct{} // under Manual: the first one may be

	mu        sync.Mutex
	delivered map[string]int
	latest    map[string]*ackpolicy.Delivery
	status    map[string]ackpolicy.Status
	shipped   map[string]int // confirmations published
	refused   bool           // the publisher has failed once
}

func newShop() *shop {
	return &shop{
		othersSettled: make(chan struct{}),
		release:       make(chan struct{}),
		delivered:     map[string]int{},
		latest:        map[string]*ackpolicy.Delivery{},
		status:        map[string]ackpolicy.Status{},
		shipped:       map[string]int{},
	}
}

// ship is a handler like any other: it knows nothing of the policy that it runs under. The three signals are
// the exception: they say what is to become of the order, whatever the policy.
func (s *shop) ship(msg *message.Message) ([]*message.Message, error) {
	order, d, err := s.receive(msg)
	if err != nil {
		return nil, err
	}
	switch first := d.Attempt() == 1; {
	case order.Trouble == flaky && first:
		return nil, errors.New("payment: connection reset")
	case order.Trouble == stubborn && d.Attempt() < 3:
		return nil, errors.New("warehouse: out of service")
	case order.Trouble == panics && first:
		panic("address is nil")
	case order.Trouble == busy && first:
		return nil, ackpolicy.NackAfter(100 * time.Millisecond)
	case order.Trouble == invalid:
		return nil, fmt.Errorf("validating order %s: %w", order.ID, fmt.Errorf("quantity is -3: %w", ackpolicy.ErrReject))
	case order.Trouble == duplicate:
		return nil, fmt.Errorf("order %s was shipped yesterday: %w", order.ID, ackpolicy.ErrAck)
	}
	return []*message.Message{message.NewMessage(watermill.NewUUID(), message.Payload(order.ID))}, nil
}

// shipByHand is the handler under Manual: nothing happens to an order unless it says so. It publishes by hand, too,
// since an order that is acked before its confirmation is published would lose that when publishing fails.
func (s *shop) shipByHand(msg *message.Message) (err error) {
	d, _ := ackpolicy.FromMessage(msg)
	defer func() {
		if r := recover(); r != nil {
			d.Nack()
		}
	}()

	confirmations, err := s.ship(msg)
	if err == nil {
		err = s.Publish("confirmations", confirmations...)
	}
	switch {
	case ackpolicy.IsSignal(err):
		return err // signals settle under Manual as well
	case err != nil:
		d.NackAfter(50 * time.Millisecond)
	case d.Offset() == 0:
		go func() { // settled long after the handler returned; the others continue meanwhile
			<-s.release
			d.Ack()
		}()
	default:
		d.Ack()
		if int(d.Offset()) == len(orders)-1 { // one after the other: those before it are settled
			close(s.othersSettled)
		}
	}
	return nil
}

// receive keeps account of a delivery.
func (s *shop) receive(msg *message.Message) (Order, *ackpolicy.Delivery, error) {
	var order Order
	if err := json.Unmarshal(msg.Payload, &order); err != nil {
		return order, nil, fmt.Errorf("decoding an order: %w", err)
	}
	d, ok := ackpolicy.FromMessage(msg)
	if !ok {
		return order, nil, errors.New("no delivery in the message's context")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delivered[order.ID]++
	s.latest[order.ID] = d
	return order, d, nil
}

// freeze asks each order's last delivery what became of it.
func (s *shop) freeze() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, d := range s.latest {
		s.status[id] = d.Status()
	}
}

// Publish fails once, for the order that asks for it.
func (s *shop) Publish(_ string, confirmations ...*message.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range confirmations {
		if string(c.Payload) == orders[len(orders)-1].ID && !s.refused {
			s.refused = true
			return errors.New("confirmations: leader not available")
		}
		s.shipped[string(c.Payload)]++
	}
	return nil
}

// Close does nothing: the Router calls it when a handler ends.
func (s *shop) Close() error { return nil }
