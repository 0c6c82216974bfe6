package ackpolicy

import (
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

// Signals end a handler and settle its record at once, from any depth: return
// one, wrap one, or panic with one. They are control flow and are not logged as errors.
// Where several are joined, nack beats reject beats ack.
//
// Source: FastStream's AckMessage, NackMessage and RejectMessage exceptions.
var (
	// ErrAck acks the record.
	ErrAck error = &signal{kind: signalledAck, text: "ackpolicy: ack"}
	// ErrNack has the record delivered again. See NackAfter.
	ErrNack error = &signal{kind: signalledNack, text: "ackpolicy: nack", delay: noDelay}
	// ErrReject gives the record up. See RejectWith.
	ErrReject error = &signal{kind: signalledReject, text: "ackpolicy: reject"}
)

var (
	// ErrRevoked is the cause a context ends with when its record's partition
	// went to another member of the group.
	ErrRevoked = consumer.ErrRevoked
	// ErrClosing is the cause a context ends with when the subscriber closes.
	ErrClosing = consumer.ErrClosing
	// ErrNoConsumerGroup is AckSync's answer where nothing can be committed.
	ErrNoConsumerGroup = consumer.ErrNoConsumerGroup
	// ErrRecordGone is why a record is rejected that waited longer than Kafka kept
	// it: its bytes were pushed out of memory (MaxBufferedBytes), and when its time
	// came, retention or compaction had removed it.
	ErrRecordGone = reread.ErrGone
	// ErrNotKafka is AckSync's answer on a message of a subscriber that is not this package's.
	ErrNotKafka = errors.New("ackpolicy: the message does not come from an ackpolicy.Subscriber, which alone can commit Kafka offsets")
)

// noDelay: the nack brought no delay of its own.
const noDelay = time.Duration(-1)

type signal struct {
	kind   outcome
	text   string
	delay  time.Duration // of a nack; noDelay: Backoff or NackResendSleep
	reason error         // of a reject; may be nil
}

func (s *signal) Error() string {
	if s.reason != nil {
		return s.text + ": " + s.reason.Error()
	}
	return s.text
}

// Is makes NackAfter an ErrNack and RejectWith an ErrReject.
func (s *signal) Is(target error) bool {
	t, ok := target.(*signal)
	return ok && t.kind == s.kind && (target == ErrAck || target == ErrNack || target == ErrReject)
}

func (s *signal) Unwrap() error { return s.reason }

// NackAfter is ErrNack with a delay before the next delivery. A negative delay is none.
func NackAfter(delay time.Duration) error {
	return &signal{kind: signalledNack, text: "ackpolicy: nack after " + delay.String(), delay: max(0, delay)}
}

// RejectWith is ErrReject with the reason that the log and the dead letter tell.
func RejectWith(reason error) error {
	return &signal{kind: signalledReject, text: "ackpolicy: reject", reason: reason}
}

// IsSignal tells whether err asks for an ack, a nack or a reject rather than
// reporting a failure. Use it in the filters of Retry, PoisonQueue and
// CircuitBreaker, so that they let signals pass.
func IsSignal(err error) bool { return findSignal(err) != nil }

// findSignal answers the strongest signal in err's tree: nack beats reject beats ack.
func findSignal(err error) *signal {
	var found *signal
	walk(err, func(s *signal) {
		if found == nil || rank(s) > rank(found) {
			found = s
		}
	})
	return found
}

func rank(s *signal) int {
	switch s.kind {
	case signalledNack:
		return 2
	case signalledReject:
		return 1
	}
	return 0
}

// walk visits every signal in err's tree. It looks into Watermill's
// RecoveredPanicError too, which does not unwrap to the value of the panic.
func walk(err error, visit func(*signal)) {
	switch e := err.(type) {
	case nil:
		return
	case *signal:
		visit(e) // what it wraps is the reason of a reject, not a signal of its own
		return
	case middleware.RecoveredPanicError:
		if inner, ok := e.V.(error); ok {
			walk(inner, visit)
		}
		return
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		walk(e.Unwrap(), visit)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			walk(inner, visit)
		}
	}
}
