package ackpolicy_test

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// With the broker gone, or silent, Close still ends within DrainTimeout + 5 s, and
// what it could not commit is told.
func TestCloseWithoutABroker(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*brokertest.Network){
		"refused": func(n *brokertest.Network) { n.Cut() },
		"silent":  func(n *brokertest.Network) { n.Delay(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 2, numbered(5)...)
			network := &brokertest.Network{}
			cfg := config(group, drainTimeout(300*time.Millisecond))
			cfg.CommitInterval = time.Hour // the last commit is all there is
			network.Use(cfg.Kafka.OverwriteSaramaConfig)
			released := make(chan ackpolicy.RevokedEvent, 2)
			cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released <- e }
			s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, 5)
			fail(network)
			began := time.Now()
			s.stop()
			if took := time.Since(began); took > 300*time.Millisecond+5*time.Second+time.Second {
				t.Errorf("Close took %v", took)
			}
			events := map[int32]ackpolicy.RevokedEvent{}
			for range 2 {
				e := await(t, "the end of a partition", released)
				events[e.Partition] = e
			}
			if e := events[0]; e.Err == nil || e.Offset != 5 {
				t.Errorf("partition 0 was released as %+v, want offset 5 and the commit's error", e)
			}
			if len(s.log.at("error")) == 0 {
				t.Error("nothing was logged at error level")
			}
			network.Heal()
			if n := network.OpenConns(); n != 0 {
				t.Errorf("%d connections left", n)
			}
		})
	}
}
