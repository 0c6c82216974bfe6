// Package seam lets package ackpolicytest, and tests in other packages than the root's, reach what the root does not
// export. The root sets it.
package seam

import (
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

var (
	// LookEvery sets the time between two looks of a *Subscriber's watchdog.
	LookEvery func(subscriber any, d time.Duration)

	// InstanceID returns the static member id of a topic's n-th subscription.
	InstanceID func(id, topic string, n int) string

	// Detach returns a *Delivery of a record that comes from no broker.
	Detach func(Record) Delivery
)

// Kafka is implemented by a dialer (Net.Proxy.Dialer of a sarama configuration) that reaches a Kafka in memory.
type Kafka interface {
	consumer.Memory
	// Watcher is called by the Subscribers with the configuration.
	Watcher() *Watcher
}

// Watcher is called with more than hooks are, at once and from whatever goroutine settles.
type Watcher struct {
	// Delays is called with the delay of a nack, and when that is over: the DueAt of its Verdict.
	Delays func(dueAt int64, delay time.Duration)
	// Settled is called when a record is settled.
	Settled func(at Place, attempt int, v partition.Verdict)
}

// Place is the place of a record.
type Place struct {
	Group     string
	Topic     string
	Partition int32
	Offset    int64
}

// Record is the record of a Delivery without a broker.
type Record struct {
	Config  any // an ackpolicy.SubscriberConfig
	Message *message.Message
	Record  *sarama.ConsumerMessage
	Attempt int
	Age     time.Duration // since its first delivery began
	Watcher *Watcher
}

// Delivery is a Delivery without a broker.
type Delivery struct {
	Delivery any                // a *ackpolicy.Delivery
	Finish   func()             // does what a subscription does once the message is acked or nacked
	Drain    func()             // begins the drain of its partition
	Close    func(revoked bool) // ends the assignment
}
