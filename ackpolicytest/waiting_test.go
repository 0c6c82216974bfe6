package ackpolicytest

import (
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// fatal is a test that notes why it would have ended.
type fatal struct {
	testing.TB
	text string
}

func (f *fatal) Helper()                           {}
func (f *fatal) Fatalf(format string, args ...any) { f.text = fmt.Sprintf(format, args...); panic(f) }

// WaitSettled says what is not settled.
func TestWaitInVain(t *testing.T) {
	Run(t, func(t *testing.T, k *Kafka) {
		router, err := message.NewRouter(message.RouterConfig{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		router.AddMiddleware(ackpolicy.Manual.Middleware)
		sub := k.Subscriber(ackpolicy.SubscriberConfig{
			Kafka: kafka.SubscriberConfig{ConsumerGroup: "shop"}, Ordering: ackpolicy.Unordered,
		})
		router.AddConsumerHandler("ship", "orders", sub, func(msg *message.Message) error {
			if d, _ := ackpolicy.FromMessage(msg); d.Offset() == 1 {
				return ackpolicy.NackAfter(1000 * time.Hour)
			}
			return nil
		})
		k.Start(router)
		k.Produce("orders", message.NewMessage("1", nil), message.NewMessage("2", nil))
		failed := &fatal{TB: t}
		k.t, k.atMost = failed, time.Hour
		defer func() {
			_ = recover()
			k.t = t
			want := `ackpolicytest: group "shop" has not settled topic orders after 1h0m0s: orders 0/0: pending; orders 0/1: nacked at attempt 1, delivered again after 1000h0m0s`
			if failed.text != want {
				t.Errorf("got  %s\nwant %s", failed.text, want)
			}
		}()
		k.WaitSettled("shop", "orders")
	})
}
