// Package consumer reads records from Kafka, hands them out, and carries out their
// settlements: group membership, claims, the slots that hand records out, and the drain at
// the end of an assignment.
package consumer

import (
	"context"
	"errors"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
	"github.com/ackpolicy/watermill-ackpolicy/internal/topic"
)

// Stop is the reason why an assignment ends. By errors.Is it is context.Canceled.
type Stop struct{ text string }

func (s *Stop) Error() string        { return s.text }
func (s *Stop) Is(target error) bool { return target == context.Canceled }

// The causes of a drain.
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
	Resources *Resources
	Brokers   []string
	Sarama    *sarama.Config // a copy that may be changed
	Side      *sarama.Config // the same for short requests
	Group     string         // without one, every partition is read and nothing is committed
	Topics    topic.Selection
	// Letters returns the topics to which the letters of a topic's records go: patterns do not match them.
	Letters func(topic string) []string
	Tracer  Tracer // may be nil
	Logger  watermill.LoggerAdapter

	Order partition.Order
	Key   func(*sarama.ConsumerMessage) []byte // by which partition.ByKey orders; nil means the record's own
	// Due returns when a record may be delivered for the first time, by Now; 0 for at once. nil
	// means at once. It is called when the record was fetched.
	Due              func(r *sarama.ConsumerMessage) int64
	MaxInFlight      int
	MaxUncommitted   uint64 // 0: no bound
	MaxBufferedBytes int64  // of Resources
	MaxDeliveries    int    // 0: no limit
	CommitInterval   time.Duration
	CommitEach       bool // commit at every ack
	DrainTimeout     time.Duration
	GiveUpLetters    bool // that are refused for good
	// Transactions stores offsets in transactions, with what deliveries publish; nil does not.
	Transactions   *Transactions
	ReconnectSleep time.Duration
	Look           time.Duration // interval of the watchdog; 0 means 15 s
	HandlerSlow    time.Duration // handlers that run for longer are reported; 0 for none
	LeftPending    time.Duration // so is a record that holds its partition because its handler left it unsettled for longer

	// Memory is what tests without a broker have instead of sarama's consumers; nil means sarama's.
	Memory Memory

	// NewDelivery returns a delivery with which a slot takes a record. Only its Task is set.
	NewDelivery func() *Delivery
	Batches     *Batches // nil: records are handed out one by one
	Events      Events
}

// several reports whether the subscription may read more than one topic.
func (c *Config) several() bool {
	_, single := c.Topics.Single()
	return !single
}

// Memory replaces sarama.NewConsumerGroupFromClient and sarama.NewConsumerFromClient. With it,
// hours pass in milliseconds, so what is done periodically is done less often. Its fetches
// never stall, so nobody looks for that.
type Memory interface {
	ConsumerGroup(name string, client sarama.Client) (sarama.ConsumerGroup, error)
	Consumer(client sarama.Client) (sarama.Consumer, error)
}

// Task is what the application does with a delivery. Run, Gone and Finished are called by its
// slot, Cancel and UnderWay by the drain, Settled by whoever settles it, and GiveUp by its
// slot or an operator.
type Task interface {
	// Run hands the record to the application and returns once the delivery is finished. The
	// verdict that it returns, unless it is nil, settles the record together with the finish,
	// and Settled is not called. If Settled has to be called, Run settles the record before and
	// returns nil. sent is false if stop was closed before anybody took the message. Run
	// must not change the record: the application gets copies.
	Run(stop <-chan struct{}, copies *record.Copies) (v *partition.Verdict, sent bool)
	// Gone is called instead of Run if the record is no longer in Kafka.
	Gone(err error)
	// GiveUp rejects the record, instead of Run or while it runs. It may be called from any goroutine.
	GiveUp(reason error)
	// Delivery returns the delivery whose Handle this is.
	Delivery() *Delivery
	// Finished is called after the finish.
	Finished()
	// Settled is called for a settlement by a verb of the Delivery: of its own record, once,
	// or of another one that was acked with it.
	Settled(offset int64, attempt int, v partition.Verdict)
	// Cancel makes a running Run return: the assignment has ended.
	Cancel()
	// UnderWay returns, after Cancel, which application code Run is waiting for, and whether
	// Run may still hand the message to the application.
	UnderWay() (call string, offering bool)
}

// Events are functions that are called with what happens. None may be nil. They are called
// without a lock.
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
	Pending      func(pending []Slow) // the oldest first; Handlers is 0
	PendingOver  func(after time.Duration)
	Failing      func(failing []Slow) // as Pending
	FailingOver  func(after time.Duration)
}

// Released says how an assignment ended.
type Released struct {
	Cause     error // ErrRevoked or ErrClosing
	Committed int64 // the watermark
	Err       error // why the watermark could not be committed
	TimedOut  bool  // the drain timeout ended before everything was finished
	Running   int   // handlers that had not finished, also of settled records
	Left      partition.Left
}

// origin is long before every time that Now returns, so that 0 means no time. The clock of
// testing/synctest begins in the year 2000.
var origin = time.Now().Add(-40 * 365 * 24 * time.Hour)

// Now returns the time of the clock for due times, in monotonic nanoseconds.
func Now() int64 { return int64(time.Since(origin)) }
