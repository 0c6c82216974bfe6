package ackpolicytest_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
)

// A handler that fails, under a policy that delivers its record again.
func ExampleNew() {
	ship := func(*message.Message) error { return errors.New("out of stock") }
	d := ackpolicytest.New(message.NewMessage("1", []byte("a book")), ackpolicytest.Record{
		Topic: "orders", Offset: 7, Attempt: 2,
		Config: ackpolicy.SubscriberConfig{
			Backoff: func(attempt int, _ error) time.Duration { return time.Duration(attempt) * time.Minute },
		},
	})
	_ = d.HandleNoPublish(ship, ackpolicy.NackOnError.Middleware)
	fmt.Println(d.Settlement())
	// Output: orders 0/7: nacked at attempt 2, delivered again after 2m0s, because of: out of stock
}
