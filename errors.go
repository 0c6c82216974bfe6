package ackpolicy

import (
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

// Signals end a handler and settle its record at once, from any depth: return
// one, wrap one, or panic with one. They are control flow and are not logged as errors.
// Where several are joined, nack beats reject beats ack. An error of the
// application is a signal, too, if its method Is or As says so.
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
	// ErrRevoked is what a context ends with when its record's partition went to
	// another member of the group. It is context.Canceled, too, by errors.Is.
	ErrRevoked error = consumer.ErrRevoked
	// ErrClosing is what a context ends with when the subscriber closes. It is
	// context.Canceled, too, by errors.Is.
	ErrClosing error = consumer.ErrClosing
	// ErrNoConsumerGroup is returned by AckSync where nothing can be committed.
	ErrNoConsumerGroup = consumer.ErrNoConsumerGroup
	// ErrRecordGone is why a record is rejected that waited longer than Kafka kept
	// it: its bytes were pushed out of memory (MaxBufferedBytes), and when its time
	// came, retention or compaction had removed it.
	ErrRecordGone = reread.ErrGone
	// ErrProcessDied is why a record is rejected whose handler ended the process, MaxDeliveries times.
	ErrProcessDied = consumer.ErrDied
	// ErrNotKafka is returned by AckSync on a message of a subscriber that is not this package's.
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
		return s.text + ": " + textOf(s.reason)
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

// IsSignal reports whether err asks for an ack, a nack or a reject, or says that the
// handler was stopped by us (ErrRevoked, ErrClosing), rather than reporting a failure. Use
// it in the filters of Retry, PoisonQueue and CircuitBreaker, so that they let
// such errors pass. RestoreContext makes sure that they see them.
func IsSignal(err error) bool {
	if err == nil {
		return false
	}
	found, _ := search(err)
	return found.signal != nil || found.stopped
}

// findSignal returns the strongest signal in err's tree: nack beats reject beats
// ack. broken says which error of the application panicked meanwhile; what was found before
// that counts.
func findSignal(err error) (found *signal, broken error) {
	if err == nil {
		return nil, nil
	}
	f, broken := search(err)
	return f.signal, broken
}

// finding is what search found.
type finding struct {
	signal  *signal
	stopped bool // ErrRevoked or ErrClosing is among the errors
}

// search looks through err's tree as errors.Is and errors.As do. It looks into
// Watermill's RecoveredPanicError too, which does not unwrap to the value of the panic.
func search(err error) (f finding, broken error) {
	at := err
	defer func() {
		if r := recover(); r != nil {
			broken = &panicked{fmt.Sprintf("a method of the handler's error (%T)", at), r}
		}
	}()
	f.walk(err, &at, 0)
	return f, nil
}

// mostDepth ends the search in an error that wraps itself.
const mostDepth = 1000

func (f *finding) walk(err error, at *error, depth int) {
	for ; err != nil && depth < mostDepth; depth++ {
		*at = err
		switch e := err.(type) {
		case *signal:
			f.take(e) // what it wraps is the reason of a reject, not a signal of its own
			return
		case *consumer.Stop:
			f.stopped = true
			return
		case middleware.RecoveredPanicError:
			err, _ = e.V.(error)
			continue
		}
		f.ask(err)
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			err = e.Unwrap()
		case interface{ Unwrap() []error }:
			for _, inner := range e.Unwrap() {
				f.walk(inner, at, depth+1)
			}
			return
		default:
			return
		}
	}
}

// ask is for the application's own types, which may be a signal by their methods.
func (f *finding) ask(err error) {
	if e, ok := err.(interface{ As(any) bool }); ok {
		var s *signal
		if e.As(&s) && s != nil {
			f.take(s)
		}
	}
	e, ok := err.(interface{ Is(error) bool })
	if !ok {
		return
	}
	if e.Is(ErrAck) {
		f.take(&signal{kind: signalledAck})
	}
	if e.Is(ErrReject) {
		f.take(&signal{kind: signalledReject, reason: err})
	}
	if e.Is(ErrNack) {
		f.take(&signal{kind: signalledNack, delay: noDelay})
	}
}

// take keeps the stronger signal; of equal ones the first that has a delay or a reason.
func (f *finding) take(s *signal) {
	if f.signal == nil || s.rank() > f.signal.rank() || s.rank() == f.signal.rank() && f.signal.bare() && !s.bare() {
		f.signal = s
	}
}

func (s *signal) rank() int {
	switch s.kind {
	case signalledNack:
		return 2
	case signalledReject:
		return 1
	}
	return 0
}

func (s *signal) bare() bool {
	return s.reason == nil && (s.kind != signalledNack || s.delay == noDelay)
}
