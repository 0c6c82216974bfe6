package ackpolicy_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// While the broker is away a subscription tries to come back with growing pauses, not in a loop, and goes on where it was.
func TestReconnect(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"group", "no group"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const down = 3 * time.Second
			network := &brokertest.Network{}
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(3)...)
			if kind == "no group" {
				group = ""
			}
			cfg := config(group)
			cfg.Kafka.OverwriteSaramaConfig.Metadata.Retry.Max = 0 // the pauses are to be our own
			network.Use(cfg.Kafka.OverwriteSaramaConfig)
			s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, 3)
			if group != "" {
				waitCommitted(t, group, topic, 0, 3)
			}
			network.Cut()
			before := network.Dials()
			<-time.After(down)
			if n := network.Dials() - before; n < 1 || n > 30 {
				t.Errorf("%d attempts to connect in %v", n, down)
			}
			network.Heal()
			produce(t, topic, 0, numbered(2)...)
			s.journal.wait(t, 5)
			if group != "" {
				waitCommitted(t, group, topic, 0, 5)
			}
			s.stop()
			s.journal.want(t, "0#1", "1#1", "2#1", "3#1", "4#1")
		})
	}
}
