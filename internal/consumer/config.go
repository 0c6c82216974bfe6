// Package consumer takes records out of Kafka and carries out what becomes of
// them: group membership, claims, the slots that hand records out, and the drain
// at the end of an assignment.
package consumer

import (
	"context"
	"errors"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
)

// Stop is why an assignment ends. A context that ends with it was canceled: it is
// context.Canceled by errors.Is.
type Stop struct{ text string }

func (s *Stop) Error() string        { return s.text }
func (s *Stop) Is(target error) bool { return target == context.Canceled }

// The causes that a drain ends with.
var (
	ErrRevoked         error = &Stop{"ackpolicy: the partition was revoked, the record belongs to its next owner"}
	ErrClosing         error = &Stop{"ackpolicy: the subscriber is closing, the record is left to the partition's next owner"}
	ErrNoConsumerGroup       = errors.New("ackpolicy: there is no consumer group, so nothing can be committed: set SubscriberConfig.Kafka.ConsumerGroup")
)

// Tracer is what a subscriber needs of watermill-kafka's SaramaTracer.
type Tracer interface {
	WrapConsumer(sarama.Consumer) sarama.Consumer
	WrapPartitionConsumer(sarama.PartitionConsumer) sarama.PartitionConsumer
	WrapConsumerGroupHandler(sarama.ConsumerGroupHandler) sarama.ConsumerGroupHandler
}

// Config of a Subscription.
type Config struct {
	Brokers []string
	Sarama  *sarama.Config // ours to change: a copy
	Side    *sarama.Config // the same for the coordinator's own connection
	Group   string         // empty: no group, every partition, no commits
	Topic   string
	Tracer  Tracer // may be nil
	Logger  watermill.LoggerAdapter

	Order            partition.Order
	MaxInFlight      int
	MaxInFlightTotal int
	MaxUncommitted   uint64 // 0: no bound
	MaxBufferedBytes int64
	MaxDeliveries    int // 0: no limit
	CommitInterval   time.Duration
	CommitEach       bool // commit at every ack
	DrainTimeout     time.Duration
	GiveUpLetters    bool // that are refused for good
	ReconnectSleep   time.Duration
	Look             time.Duration // of the watchdog; 0: 15 s
	HandlerSlow      time.Duration // a handler that runs for longer is told; 0: none is

	// NewDelivery returns a delivery for a slot to take a record with. Only its Task is set.
	NewDelivery func() *Delivery
	Events      Events
}

// Task is what the application does with a delivery. Run, Gone and Finished are its slot's to
// call, Cancel and UnderWay the drain's, Settled is called by whoever settles it, and GiveUp by
// its slot or an operator.
type Task interface {
	// Run hands the record to the application and returns once that is finished. What it
	// returns settles the record together with the finish, and nobody is told: where
	// somebody is to be told, Run settles it before and returns a pending verdict. sent is
	// false if stop closed before anybody took the message. The record is not to be
	// changed: what the application is given is copied.
	Run(stop <-chan struct{}, copies *record.Copies) (v partition.Verdict, sent bool)
	// Gone stands for Run where the record is no longer in Kafka.
	Gone(err error)
	// GiveUp rejects the record, in place of Run or beside it. It may be called from any goroutine.
	GiveUp(reason error)
	// Finished follows the finish.
	Finished()
	// Settled tells of a settlement by a verb of the Delivery: of its own record, once, or
	// of another one that was acked with it.
	Settled(offset int64, attempt int, v partition.Verdict)
	// Cancel makes a Run under way return: the delivery is no longer ours.
	Cancel()
	// UnderWay reports, after Cancel, which code of the application Run has called and
	// waits for, and whether Run may still hand the message to the application.
	UnderWay() (call string, offering bool)
}

// Events tell what happens; each may be nil. They are called without a lock held.
type Events struct {
	Assigned     func(topic string, partition int32, start int64)
	Reset        func(topic string, partition int32, stored, start int64)
	Committed    func(topic string, partition int32, offset int64, took time.Duration)
	CommitFailed func(topic string, partition int32, offset int64, err error, attempt int, took time.Duration)
	Released     func(topic string, partition int32, r Released)
	Blocked      func(topic string, partition int32, s Blocked)
	FetchStalled func(topic string, partition int32, s FetchStalled)
	Slow         func(slow []Slow) // the slowest first
	SlowOver     func(after time.Duration)
}

// Released is how an assignment ended.
type Released struct {
	Cause     error // ErrRevoked or ErrClosing
	Committed int64 // the watermark
	Err       error // the watermark could not be committed
	TimedOut  bool  // something was left when the drain timeout was over
	Running   int   // handlers that had not finished, also of settled records
	Left      partition.Left
}

// origin lies long before any time that Now is asked for, so that 0 is no time: testing/synctest's
// clock begins in the year 2000.
var origin = time.Now().Add(-40 * 365 * 24 * time.Hour)

// Now is the clock of due times: monotonic nanoseconds.
func Now() int64 { return int64(time.Since(origin)) }
