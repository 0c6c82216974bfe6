package ackpolicy

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
	"github.com/ackpolicy/watermill-ackpolicy/internal/topic"
)

// foreign is the state of a Delivery for a message of another subscriber, which can only
// be settled by Watermill's own ack and nack.
type foreign struct {
	logger    watermill.LoggerAdapter
	ctx       context.Context // of the message as it came to the middleware; a Timeout inside replaces it by one that ends
	topic     string
	partition int32
	offset    int64
	key       []byte
	timestamp time.Time

	// Guarded by the delivery's lock.
	status  Status
	settled chan struct{}
}

// foreignDelivery puts a Delivery for the message into its context.
func foreignDelivery(msg *message.Message, logger watermill.LoggerAdapter) *Delivery {
	ctx := msg.Context()
	f := &foreign{logger: logger, ctx: ctx, partition: -1, offset: -1, settled: make(chan struct{})}
	f.topic = message.SubscribeTopicFromCtx(ctx)
	// watermill-kafka sets these
	if p, ok := kafka.MessagePartitionFromCtx(ctx); ok {
		f.partition = p
	}
	if o, ok := kafka.MessagePartitionOffsetFromCtx(ctx); ok {
		f.offset = o
	}
	f.key, _ = kafka.MessageKeyFromCtx(ctx)
	f.timestamp, _ = kafka.MessageTimestampFromCtx(ctx)
	d := &Delivery{msg: msg, ending: ending{few: &few{foreign: f}}}
	msg.SetContext(context.WithValue(ctx, deliveryKey{}, d))
	return d
}

// settle acks or nacks the message. A reject acks it, and logs what was given up.
func (f *foreign) settle(d *Delivery, s Status, reason error) bool {
	d.ending.mu.Lock()
	if f.status == Pending {
		f.status = f.read(d)
	}
	if f.status != Pending {
		defer d.ending.mu.Unlock()
		return f.status == s
	}
	ok := false
	if s == Nacked {
		ok = d.msg.Nack()
	} else {
		ok = d.msg.Ack()
	}
	if !ok { // the other one came first, from elsewhere
		f.status = f.read(d)
	} else {
		f.status = s
	}
	close(f.settled)
	d.ending.mu.Unlock()
	if ok && s == Rejected {
		fields := watermill.LogFields{"topic": f.topic, "message_uuid": d.msg.UUID}
		if f.partition >= 0 {
			fields["kafka_partition"], fields["kafka_partition_offset"] = f.partition, f.offset
		}
		f.logger.Error("Message rejected: its subscriber can only ack it, there is no dead letter", orNoReason(reason), fields)
	}
	return ok
}

// read returns what was done to the message without the Delivery.
func (f *foreign) read(d *Delivery) Status {
	select {
	case <-d.msg.Acked():
		return Acked
	case <-d.msg.Nacked():
		return Nacked
	default:
		return Pending
	}
}

func (f *foreign) state(d *Delivery) Status {
	d.ending.mu.Lock()
	defer d.ending.mu.Unlock()
	if f.status == Pending {
		return f.read(d)
	}
	return f.status
}

// wait returns once the message is settled, or an error if it will not be.
func (f *foreign) wait(d *Delivery) error {
	select {
	case <-f.settled:
	case <-d.msg.Acked():
	case <-d.msg.Nacked():
	case <-f.ctx.Done():
		if f.state(d) == Pending { // some subscribers end the context with the ack
			return fmt.Errorf("ackpolicy: message %s was not settled: %w", d.msg.UUID, context.Cause(f.ctx))
		}
	}
	return nil
}

func init() { seam.Detach = detach } // for package ackpolicytest

// detach returns a Delivery without a broker, for tests of handlers. It has no dead letter
// destination, and calls no hooks.
func detach(r seam.Record) seam.Delivery {
	config := r.Config.(SubscriberConfig)
	config.DeadLetter, config.Hooks, config.Connections = nil, Hooks{}, nil
	sub := configured(config, nil)
	sub.watcher = r.Watcher
	_ = sub.config.Connections.join(&sub.config) // nobody else has them
	s := &subscription{sub: sub, topics: topic.Selection{Text: r.Record.Topic, Names: []string{r.Record.Topic}}, logger: sub.logger, detached: true}
	d := &Delivery{sub: s, msg: r.Message}
	d.kafka.Handle = (*task)(d)
	first := int64(0)
	if r.Age > 0 {
		first = consumer.Now() - int64(r.Age)
	}
	assignment := consumer.Detach(r.Message.Context(), &d.kafka, s.consumerConfig(), r.Record, r.Attempt-1, first)
	r.Message.SetContext((*deliveryContext)(d))
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
			if v := d.finish(acked); v != nil {
				d.settle(*v)
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
