package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// check reads the database and all confirmations.
func (s *shop) check(ctx context.Context, orders int) error {
	b, err := openBooks(s.Database)
	if err != nil {
		return err
	}
	defer b.db.Close()
	booked := map[int]int{}
	rows, err := b.db.QueryContext(ctx, "SELECT id FROM bookings")
	if err != nil {
		return err
	}
	for rows.Next() {
		var id int
		if err := rows.Scan(&id); err != nil {
			return err
		}
		booked[id]++
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	confirmed, err := s.confirmed()
	if err != nil {
		return err
	}
	pieces := 0
	for id := range orders {
		if booked[id] != 1 || confirmed[id] != 1 {
			return fmt.Errorf("order %d is booked %d times, and has %d confirmations", id, booked[id], confirmed[id])
		}
		pieces += 1 + id%3
	}
	var stock, repeats int
	if err := b.db.QueryRowContext(ctx, "SELECT (SELECT SUM(pieces) FROM stock), (SELECT SUM(repeats) FROM outbox)").Scan(&stock, &repeats); err != nil {
		return err
	}
	if stock != -pieces {
		return fmt.Errorf("%d pieces were taken, and %d were ordered", -stock, pieces)
	}
	fmt.Printf("each of %d orders is booked once, and has one confirmation; %d came again after they were booked\n", orders, repeats)
	return nil
}

// confirmed returns how many confirmations each order has, for a consumer with read_committed.
func (s *shop) confirmed() (map[int]int, error) {
	confirmed := map[int]int{}
	for p := range int32(partitions) {
		if err := brokertest.Read(s.Brokers, s.Confirmations, p, timeout/4, func(m *sarama.ConsumerMessage) error {
			var c confirmation
			err := json.Unmarshal(m.Value, &c)
			confirmed[c.Order]++
			return err
		}); err != nil {
			return nil, err
		}
	}
	return confirmed, nil
}
