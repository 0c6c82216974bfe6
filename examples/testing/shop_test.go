package shop

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
)

var errStrike = errors.New("the packers are on strike")

// fakeWarehouse fails with its errors, one after the other, and then packs.
type fakeWarehouse struct {
	mu     sync.Mutex
	errs   []error
	packed []string
}

func (w *fakeWarehouse) Pack(_ context.Context, order Order) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errs) > 0 {
		err := w.errs[0]
		w.errs = w.errs[1:]
		return err
	}
	w.packed = append(w.packed, order.ID)
	return nil
}

// What the handler and its policy do with one delivery.
func TestHandler(t *testing.T) {
	handle := func(payload string, record ackpolicytest.Record, errs ...error) ackpolicytest.Settlement {
		record.Config = config(nil)
		d := ackpolicytest.New(message.NewMessage("1", []byte(payload)), record)
		h := handler{&fakeWarehouse{errs: errs}}
		_, _ = d.Handle(ackpolicy.NackOnError.Middleware(h.ship))
		return d.Settlement()
	}
	const order = `{"ID": "1", "Item": "book"}`
	first, third, last := ackpolicytest.Record{}, ackpolicytest.Record{Attempt: 3}, ackpolicytest.Record{Attempt: 4}

	handle(order, first).WantAcked(t, 1)
	handle(order, first, ErrNoStock).WantNacked(t, 1, time.Hour)
	handle(order, first, errStrike).WantNacked(t, 1, time.Second)
	handle(order, third, errStrike).WantNacked(t, 3, 4*time.Second)
	handle(order, last, errStrike).WantRejected(t, 4, errStrike)
	handle("{", first).WantRejected(t, 1, nil)

	unpublished := ackpolicytest.Record{Publish: func([]*message.Message) error { return errors.New("no broker") }}
	handle(order, unpublished).WantNacked(t, 1, time.Second)
}

// shop is the whole service on a Kafka in memory.
type shop struct {
	*ackpolicytest.Kafka
	warehouse *fakeWarehouse
	letters   *ackpolicytest.Letters
}

// open starts the service; again after a crash.
func (s shop) open(t *testing.T) {
	t.Helper()
	router, err := newRouter(s.warehouse, s.Subscriber(config(s.letters)), s.Publisher(), s.Logger())
	if err != nil {
		t.Fatal(err)
	}
	s.Start(router)
}

func run(t *testing.T, warehouse *fakeWarehouse, test func(t *testing.T, s shop)) {
	t.Helper()
	ackpolicytest.Run(t, func(t *testing.T, k *ackpolicytest.Kafka) {
		s := shop{k, warehouse, &ackpolicytest.Letters{}}
		s.open(t)
		test(t, s)
	})
}

func (s shop) order(id string) {
	s.ProduceRecord(&sarama.ProducerMessage{
		Topic: "orders", Key: sarama.StringEncoder(id), Value: sarama.StringEncoder(`{"ID": "` + id + `"}`),
	})
}

// An order that is out of stock is shipped an hour later. It delays no other.
func TestOutOfStock(t *testing.T) {
	began := time.Now()
	run(t, &fakeWarehouse{errs: []error{ErrNoStock}}, func(t *testing.T, s shop) {
		s.order("first")
		s.Advance(time.Second)
		s.order("second")
		s.Advance(time.Second)
		s.Settlement("shop", "orders", 0, 0).WantNacked(t, 1, time.Hour)
		s.Settlement("shop", "orders", 0, 1).WantAcked(t, 1)
		if offset := s.Committed("shop", "orders", 0); offset != 0 {
			t.Errorf("committed %d past the order that waits", offset)
		}

		s.Advance(time.Hour)
		s.Settlement("shop", "orders", 0, 0).WantAcked(t, 2)
		if shipped := s.Records("shipped"); len(shipped) != 2 {
			t.Errorf("%d orders are shipped", len(shipped))
		}
	})
	t.Logf("took %v", time.Since(began))
}

// The hour continues over a crash, and what was shipped is not shipped again.
func TestCrashWhileItWaits(t *testing.T) {
	run(t, &fakeWarehouse{errs: []error{ErrNoStock}}, func(t *testing.T, s shop) {
		s.order("first")
		s.Advance(time.Second)
		s.order("second")
		s.Advance(30 * time.Minute)
		s.Crash()
		s.open(t)
		s.Advance(25 * time.Minute)
		s.Settlement("shop", "orders", 0, 0).WantNacked(t, 1, time.Hour)
		s.WaitSettled("shop", "orders")
		s.Settlement("shop", "orders", 0, 0).WantAcked(t, 2)
		if packed := len(s.warehouse.packed); packed != 2 {
			t.Errorf("packed %v", s.warehouse.packed)
		}
	})
}

// An order that fails at every attempt becomes a dead letter, with the reason.
func TestGivenUp(t *testing.T) {
	run(t, &fakeWarehouse{errs: []error{errStrike, errStrike, errStrike, errStrike}}, func(t *testing.T, s shop) {
		s.order("first")
		s.WaitSettled("shop", "orders")
		s.letters.Want(t, "orders", 0, 0, errStrike)
		s.order("second")
		s.WaitSettled("shop", "orders")
		s.Settlement("shop", "orders", 0, 1).WantAcked(t, 1)
	})
}
