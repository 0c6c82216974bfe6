package ackpolicy

import (
	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
)

func init() { seam.Detach = detach } // for package ackpolicytest

// detach returns a Delivery without a broker, for tests of handlers. It has no dead letter
// destination, and calls no hooks.
func detach(r seam.Record) seam.Delivery {
	config := r.Config.(SubscriberConfig)
	config.DeadLetter, config.Hooks, config.Connections = nil, Hooks{}, nil
	sub := configured(config, nil)
	sub.watcher = r.Watcher
	_ = sub.config.Connections.join(&sub.config) // nobody else has them
	s := &subscription{sub: sub, topic: r.Record.Topic, logger: sub.logger, detached: true}
	d := &Delivery{sub: s, msg: r.Message}
	d.ctx.d, d.kafka.Handle = d, (*task)(d)
	first := int64(0)
	if r.Age > 0 {
		first = consumer.Now() - int64(r.Age)
	}
	assignment := consumer.Detach(r.Message.Context(), &d.kafka, s.consumerConfig(s.topic), r.Record, r.Attempt-1, first)
	r.Message.SetContext(&d.ctx)
	d.began.Store(consumer.Now())
	return seam.Delivery{
		Delivery: d,
		Finish: func() {
			acked := false
			select {
			case <-r.Message.Acked():
				acked = true
			case <-r.Message.Nacked():
			}
			if v := d.finish(acked); v.Status != partition.Pending {
				d.settle(v)
			}
			(*task)(d).Finished()
		},
		Drain: assignment.Drain,
		Close: func(revoked bool) {
			if revoked {
				assignment.Close(ErrRevoked)
			} else {
				assignment.Close(ErrClosing)
			}
		},
	}
}
