package ackpolicy

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/ackpolicy/watermill-ackpolicy/internal/consumer"
	"github.com/ackpolicy/watermill-ackpolicy/internal/reread"
)

// Signals settle a record from anywhere below its handler: return one, wrap one, or
// panic with one. They are control flow, and are not logged as errors. If several are
// joined, nack takes precedence over reject, and reject over ack. An error of the
// application's own type is a signal if its method Is or its method As says so: one of the
// two is enough.
//
// They correspond to FastStream's exceptions AckMessage, NackMessage and RejectMessage.
var (
	// ErrAck acks the record.
	ErrAck error = &signal{kind: signalledAck, text: "ackpolicy: ack"}
	// ErrNack nacks the record: it is delivered again. See NackAfter.
	ErrNack error = &signal{kind: signalledNack, text: "ackpolicy: nack", delay: noDelay}
	// ErrReject rejects the record: it is given up. See RejectWith.
	ErrReject error = &signal{kind: signalledReject, text: "ackpolicy: reject"}
)

var (
	// ErrRevoked is the error of a message's context that ended because its partition
	// was assigned to another member of the group. errors.Is reports that it is
	// context.Canceled.
	ErrRevoked error = consumer.ErrRevoked
	// ErrClosing is the error of a message's context that ended because the subscriber
	// closes. errors.Is reports that it is context.Canceled.
	ErrClosing error = consumer.ErrClosing
	// ErrNoConsumerGroup is returned by AckSync if the subscriber has no consumer
	// group, and so commits nothing.
	ErrNoConsumerGroup = consumer.ErrNoConsumerGroup
	// ErrRecordGone is the reason of a reject when a record had waited longer than
	// Kafka kept it: its bytes were pushed out of memory (MaxBufferedBytes), and when
	// it was due, retention or compaction had removed it.
	ErrRecordGone = reread.ErrGone
	// ErrProcessDied is the reason of a reject when the process died repeatedly while
	// the record's handler ran alone. See SubscriberConfig.MaxDeliveries.
	ErrProcessDied = consumer.ErrDied
	// ErrNotKafka is returned by AckSync on a message of another package's subscriber.
	ErrNotKafka = errors.New("ackpolicy: the message does not come from an ackpolicy.Subscriber, which alone can commit Kafka offsets")
)

var errNoReason = errors.New("no reason given")

// orNoReason returns the reason of a reject or a failure, for logs and letters.
func orNoReason(err error) error {
	if err == nil {
		return errNoReason
	}
	return err
}

// noDelay means that the nack itself has no delay.
const noDelay = time.Duration(-1)

type signal struct {
	kind   outcome
	text   string
	delay  time.Duration // of a nack; noDelay means Backoff or NackResendSleep
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

// NackAfter returns an ErrNack with a delay before the next delivery. A negative delay
// counts as zero.
func NackAfter(delay time.Duration) error {
	return &signal{kind: signalledNack, text: "ackpolicy: nack after " + delay.String(), delay: max(0, delay)}
}

// RejectWith returns an ErrReject with a reason, for the log and the dead letter.
func RejectWith(reason error) error {
	return &signal{kind: signalledReject, text: "ackpolicy: reject", reason: reason}
}

// IsSignal reports whether err is not a failure: whether it asks for an ack, a nack or
// a reject, or says that the subscriber stopped the handler (ErrRevoked, ErrClosing).
// Use it in the filters of Retry, PoisonQueue and CircuitBreaker, so that they let such
// errors pass. RestoreContext makes sure that the filters see them.
func IsSignal(err error) bool {
	if err == nil {
		return false
	}
	found, _ := search(err)
	return found.signal != nil || found.stopped
}

// SignalOf returns which signal err is: ErrAck, ErrNack or ErrReject, or nil if it is none.
// Among joined signals it is the one that takes precedence. Comparing err with errors.Is is
// not enough: that misses a signal which only a method As reveals, and finds an ErrNack that
// is merely the reason of a reject.
func SignalOf(err error) error {
	sig, _ := findSignal(err)
	if sig == nil {
		return nil
	}
	switch sig.kind {
	case signalledNack:
		return ErrNack
	case signalledReject:
		return ErrReject
	}
	return ErrAck
}

// Settle settles the Delivery of a message's context if err is a signal, and returns err.
// Call it where something between the handler and the middleware replaces the handler's
// error, so that the middleware does not see the signal. It also works without the
// middleware. Package ackpolicycqrs calls it for Watermill's CQRS processors.
func Settle(ctx context.Context, err error) error {
	sig, _ := findSignal(err)
	if d, ok := FromContext(ctx); ok && sig != nil {
		d.obey(sig)
	}
	return err
}

// findSignal returns the signal in err's tree that takes precedence. broken is set if a
// method of one of the application's errors panicked; what was found before that counts.
func findSignal(err error) (found *signal, broken error) {
	if err == nil {
		return nil, nil
	}
	f, broken := search(err)
	return f.signal, broken
}

// finding is the result of search.
type finding struct {
	signal  *signal
	stopped bool // ErrRevoked or ErrClosing is among the errors
}

// search walks err's tree as errors.Is and errors.As do. It also looks into Watermill's
// RecoveredPanicError, which does not unwrap to the value of the panic.
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

// mostDepth limits the search, for errors that wrap themselves.
const mostDepth = 1000

func (f *finding) walk(err error, at *error, depth int) {
	for ; err != nil && depth < mostDepth; depth++ {
		*at = err
		switch e := err.(type) {
		case *signal:
			f.take(e) // what it wraps is the reason of a reject, not another signal
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

// ask calls the methods Is and As of an application's own error type.
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

// take keeps the signal that takes precedence; among equal ones, the first that has a
// delay or a reason.
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

// NeverRetry returns a function for Middleware.Classify that rejects a record at its
// first delivery if no later one can succeed: if the error is one of the targets
// (errors.Is), or IsPermanent reports true.
//
//	Classify: ackpolicy.NeverRetry(ErrUnknownCustomer),
func NeverRetry(targets ...error) func(err error) (Policy, bool) {
	return func(err error) (Policy, bool) {
		for _, target := range targets {
			if errors.Is(err, target) {
				return RejectOnError, true
			}
		}
		return RejectOnError, IsPermanent(err)
	}
}

// IsPermanent reports whether err, or an error that it wraps, will occur again at the
// next attempt: it has a method Permanent() bool that returns true, it is
// errors.ErrUnsupported, or it is an error of the standard library for malformed input
// (JSON, base64, hexadecimal, numbers, times).
func IsPermanent(err error) bool {
	var own interface{ Permanent() bool }
	if errors.As(err, &own) {
		return own.Permanent()
	}
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, hex.ErrLength) ||
		is[*json.SyntaxError](err) || is[*json.UnmarshalTypeError](err) ||
		is[base64.CorruptInputError](err) || is[hex.InvalidByteError](err) ||
		is[*strconv.NumError](err) || is[*time.ParseError](err)
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
