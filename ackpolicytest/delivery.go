package ackpolicytest

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/kafkactx"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
)

// Record describes the record of a Delivery.
type Record struct {
	Topic     string // "" means "topic"
	Partition int32
	Offset    int64
	Key       []byte
	Timestamp time.Time
	// Attempt is the number of this delivery of the record; 0 means 1.
	Attempt int
	// Age is the time since the first delivery began, for SubscriberConfig.MaxAge.
	Age time.Duration
	// Handler is the name that the handler has in the Router, for Middleware.Handlers.
	Handler string
	// Config is that of the Subscriber. What decides about a settlement applies, such as
	// Backoff, MaxDeliveries and MaxAge. Its hooks and its DeadLetter are not called. Without
	// a consumer group in it, the group is "group".
	Config ackpolicy.SubscriberConfig
	// Publish is what the Router does with the messages that the handler returned. If it
	// returns an error, the message is nacked. nil publishes nothing, successfully.
	Publish func(produced []*message.Message) error
}

// Delivery is a Delivery for the test of a handler. Its verbs settle it as they do on Kafka:
// the first settlement counts. Every commit is stored at once, so AckSync returns nil.
type Delivery struct {
	*ackpolicy.Delivery
	message *message.Message
	publish func(produced []*message.Message) error
	seam    seam.Delivery
	watched *recorder
}

// New returns the Delivery of a message, as if a Subscriber had just handed it out.
// FromMessage finds it. The message keeps its content, and its context the values it has.
func New(msg *message.Message, record Record) *Delivery {
	if record.Topic == "" {
		record.Topic = "topic"
	}
	if record.Config.Kafka.ConsumerGroup == "" {
		record.Config.Kafka.ConsumerGroup = "group"
	}
	if record.Handler != "" {
		msg.SetContext(context.WithValue(msg.Context(), handlerNameKey, record.Handler))
	}
	d := &Delivery{message: msg, publish: record.Publish, watched: newRecorder()}
	d.seam = seam.Detach(seam.Record{
		Config: record.Config, Message: msg, Attempt: max(1, record.Attempt), Age: record.Age,
		Record: &sarama.ConsumerMessage{
			Topic: record.Topic, Partition: record.Partition, Offset: record.Offset,
			Key: record.Key, Value: msg.Payload, Timestamp: record.Timestamp,
		},
		Watcher: d.watched.watcher(func() bool { return false }),
	})
	d.Delivery = d.seam.Delivery.(*ackpolicy.Delivery)
	return d
}

// Handle calls a handler with the message and does what Watermill's Router does then: it
// publishes what the handler produced and acks the message, or nacks it after an error or a
// panic. The policy is a middleware around the handler:
//
//	d.Handle(ackpolicy.NackOnError.Middleware(handler))
//
// Handle returns what reached the Router. It may be called once.
func (d *Delivery) Handle(h message.HandlerFunc) (produced []*message.Message, err error) {
	produced, err = recovered(h, d.message)
	if err == nil && d.publish != nil {
		err = d.publish(produced)
	}
	if err != nil {
		d.message.Nack()
	} else {
		d.message.Ack()
	}
	d.seam.Finish()
	return produced, err
}

func recovered(h message.HandlerFunc, msg *message.Message) (produced []*message.Message, err error) {
	defer func() {
		if r := recover(); r != nil {
			produced, err = nil, middleware.RecoveredPanicError{V: r, Stacktrace: string(debug.Stack())}
		}
	}()
	return h(msg)
}

// HandleNoPublish is Handle for a handler that produces nothing. Middlewares apply to it in
// the given order, the first one being the outermost.
func (d *Delivery) HandleNoPublish(h message.NoPublishHandlerFunc, middlewares ...message.HandlerMiddleware) error {
	handler := message.HandlerFunc(func(msg *message.Message) ([]*message.Message, error) { return nil, h(msg) })
	for i := len(middlewares) - 1; i >= 0; i-- {
		handler = middlewares[i](handler)
	}
	_, err := d.Handle(handler)
	return err
}

// Drain begins the drain of the partition: the channel of Draining is closed.
func (d *Delivery) Drain() { d.seam.Drain() }

// Revoke ends the assignment: the message's context ends with ErrRevoked as its cause, and
// what is not settled by now is left to the next owner of the partition.
func (d *Delivery) Revoke() { d.seam.Close(true) }

// Close is Revoke with ErrClosing.
func (d *Delivery) Close() { d.seam.Close(false) }

// Settlement returns how the delivery was settled. If it was not, the Status is Pending, or
// Revoked after Revoke or Close.
func (d *Delivery) Settlement() Settlement {
	s := d.watched.last(seam.Place{Group: d.Group(), Topic: d.Topic(), Partition: d.Partition(), Offset: d.Offset()})
	if s.Status == ackpolicy.Pending {
		s.Attempt, s.Status = d.Attempt(), d.Status()
	}
	return s
}

// handlerNameKey is the key of the handler's name in a message's context, which Watermill does
// not export.
var handlerNameKey = kafkactx.KeyOf(func(ctx context.Context) (string, bool) { return message.HandlerNameFromCtx(ctx), true })
