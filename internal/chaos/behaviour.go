package chaos

import (
	"errors"
	"math/rand/v2"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// ending is how a handler ends.
type ending uint8

const (
	succeeds ending = iota
	fails
	panics
	signalsAck
	signalsNack
	signalsReject
)

// verb is how a handler under Manual acks.
type verb uint8

const (
	acks verb = iota
	acksSync
	acksLate // in a batch, after it has returned
)

// behaviour is what a record's handler does. Seed and offset decide it, and so it is the same at each member.
type behaviour struct {
	work     time.Duration
	delay    time.Duration // of a nack
	failures int           // deliveries that do not end in the last way
	failing  ending
	last     ending
	verb     verb
}

func (s Spec) behaviour(id ID) behaviour {
	r := rand.New(rand.NewPCG(s.Seed, uint64(id.Partition)<<40|uint64(id.Offset)))
	span := func(from, to time.Duration) time.Duration { return from + time.Duration(r.Int64N(int64(to-from))) }
	b := behaviour{work: span(time.Millisecond, 5*time.Millisecond), delay: span(0, 80*time.Millisecond)}
	switch n := r.IntN(100); {
	case n < 4:
		b.work = span(50*time.Millisecond, 200*time.Millisecond)
	case n < 25:
		b.work = span(5*time.Millisecond, 25*time.Millisecond)
	}
	switch n := r.IntN(100); {
	case n < 4:
		b.failures, b.failing = 1, fails
	case n < 6:
		b.failures, b.failing = 2, fails
	case n < 8:
		b.failures, b.failing = 1, panics
	case n < 12:
		b.failures, b.failing = 1, signalsNack
	case n < 13: // hopeless
		b.failures, b.failing = maxDeliveries, signalsNack
	case n < 16:
		b.last = signalsReject
	case n < 18:
		b.last = signalsAck
	}
	if s.Output != "" { // fewer fail, and it does not matter how
		b.failures, b.last = 0, succeeds
		switch n := r.IntN(100); {
		case n < 3:
			b.failures, b.failing = 1, fails
		case n < 5:
			b.failures, b.failing = 1, signalsNack
		case n < 6:
			b.last = signalsReject
		}
	}
	if s.Calm {
		b.failures = 0
	}
	switch n := r.IntN(100); {
	case n < 4:
		b.verb = acksSync
	case n < 70:
		b.verb = acksLate
	}
	// Some are nacked for so long that their assignment ends before.
	if b.failures == 1 && b.failing == signalsNack && s.Ordering != ackpolicy.OrderByPartition && r.IntN(3) == 0 {
		b.delay = span(time.Second, 4*time.Second)
	}
	return b
}

func (b behaviour) ends(attempt int) ending {
	if attempt <= b.failures {
		return b.failing
	}
	return b.last
}

// waits is how long a record is not delivered again after that attempt was nacked, at least.
func (s Spec) waits(id ID, attempt int) time.Duration {
	b := s.behaviour(id)
	if e := b.ends(attempt); e == signalsNack || s.Policy == ackpolicy.Manual && e != succeeds {
		return b.delay
	}
	return resendSleep
}

// What a delivery's end does to its record.
const (
	ack    = "ack"
	nack   = "nack"
	reject = "reject"
	none   = "none" // it is settled already, or will be later
)

// verdict is the table of docs/semantics.md, for a handler that has not settled.
func (s Spec) verdict(e ending, attempt int) string {
	v := none
	switch {
	case s.Stock:
		return stockVerdict(e)
	case s.Policy == ackpolicy.AckFirst:
		return none
	case e == signalsAck:
		v = ack
	case e == signalsNack:
		v = nack
	case e == signalsReject:
		v = reject
	case s.Policy == ackpolicy.Manual:
	case e == succeeds, s.Policy == ackpolicy.Ack:
		v = ack
	case s.Policy == ackpolicy.RejectOnError:
		v = reject
	default:
		v = nack
	}
	if v == nack && attempt >= maxDeliveries {
		v = reject
	}
	return v
}

// stockVerdict is what Watermill makes of an end without a policy. It has no reject: such a record is acked.
func stockVerdict(e ending) string {
	switch e {
	case fails, panics, signalsNack:
		return nack
	}
	return ack
}

var errBoom = errors.New("boom")

// end ends a handler.
func (s Spec) end(e ending, delay time.Duration) error {
	switch e {
	case fails:
		return errBoom
	case panics:
		panic(errBoom)
	case signalsAck:
		return s.signal(ackpolicy.ErrAck)
	case signalsNack:
		if s.Stock {
			return errBoom
		}
		return ackpolicy.NackAfter(delay)
	case signalsReject:
		return s.signal(ackpolicy.RejectWith(errBoom))
	}
	return nil
}

func (s Spec) signal(err error) error {
	if s.Stock {
		return nil
	}
	return err
}
