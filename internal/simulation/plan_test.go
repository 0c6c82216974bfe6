package simulation

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// plan is a history before it happens: all of it follows from the seed.
type plan struct {
	seed           uint64
	cooperative    bool
	ordering       ackpolicy.Ordering
	policy         ackpolicy.Policy // AckFirst is with ConfirmFirst
	partitions     int32
	keys           int
	records        int // per partition
	maxInFlight    int
	maxUncommitted int
	maxDeliveries  int
	commitInterval time.Duration
	drainTimeout   time.Duration
	slack          time.Duration // how long records continue to be produced
	members        int
	steps          []step
	again          time.Duration // when the topic is deleted and created again; 0: it is not

	transactional bool
	timeout       time.Duration // of transactions
}

const (
	session   = 3 * time.Second
	rebalance = 6 * time.Second
	storm     = 8 * time.Second // how long steps are taken
	resend    = 20 * time.Millisecond
)

// step is something that is done to the group.
type step struct {
	at     time.Duration
	do     action
	member int // which of those that run, counted around
	length time.Duration
	extent time.Duration
	code   int  // which refusal
	amid   bool // the member is restarted amid it
	kind   int  // which request of a transaction
	after  bool // the broker has it
}

type action uint8

const (
	kill    action = iota // and a new process a while later
	restart               // gracefully
	join
	leave
	blink       // connections are closed, and come again
	cut         // and are refused for a while
	slowThere   // requests are late
	slowBack    // responses are late
	overtake    // what is sent for a moment arrives late, also after its connection has ended
	refuse      // commits are refused
	cutAndClose // Close without a network
	refuseStep  // requests of transactions of one kind are refused
	loseStep    // or lose their connection, before or after the broker has them
	holdEnd     // the broker takes its time to end transactions, and meanwhile the member is killed, or another one comes
)

const actions = refuseStep // of any history

var actionNames = [...]string{"kill", "restart", "join", "leave", "blink", "cut", "slowThere", "slowBack", "overtake", "refuse", "cutAndClose", "refuseStep", "loseStep", "holdEnd"}

func (a action) String() string { return actionNames[a] }

func (s step) String() string {
	text := fmt.Sprintf("%v %v member~%d length=%v extent=%v code=%d amid=%t", s.at, s.do, s.member, s.length, s.extent, s.code, s.amid)
	if s.do >= actions {
		text += fmt.Sprintf(" request=%v after=%t", transactionSteps[s.kind].key.Name(), s.after)
	}
	return text
}

func dice(seed uint64, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

func between(r *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(r.Int64N(int64(to-from)))
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func newPlan(seed uint64) plan {
	r := dice(seed, 1)
	p := plan{
		seed:           seed,
		cooperative:    r.IntN(2) == 0,
		ordering:       pick(r, ackpolicy.OrderByPartition, ackpolicy.OrderByKey, ackpolicy.OrderByKey, ackpolicy.Unordered),
		policy:         pick(r, ackpolicy.NackOnError, ackpolicy.NackOnError, ackpolicy.Manual, ackpolicy.Manual, ackpolicy.RejectOnError, ackpolicy.Ack, ackpolicy.AckFirst, ackpolicy.AckFirst),
		partitions:     int32(1 + r.IntN(3)),
		keys:           1 + r.IntN(6),
		records:        20 + r.IntN(80),
		maxInFlight:    1 + r.IntN(8),
		maxUncommitted: pick(r, 5, 20, 100, ackpolicy.Unlimited),
		maxDeliveries:  pick(r, 0, 0, 3, 5),
		commitInterval: pick(r, 50*time.Millisecond, 200*time.Millisecond, time.Second),
		drainTimeout:   pick(r, 500*time.Millisecond, 2*time.Second, 4*time.Second),
		slack:          pick(r, 0, storm/2, storm),
		members:        1 + r.IntN(3),
	}
	if p.ordering == ackpolicy.OrderByPartition {
		p.maxInFlight = 1
	}
	for range r.IntN(9) {
		s := step{
			at: between(r, 0, storm), do: action(r.IntN(int(actions))), member: r.IntN(8),
			length: between(r, 20*time.Millisecond, 2*time.Second), extent: between(r, 5*time.Millisecond, 2500*time.Millisecond), code: r.IntN(8), amid: r.IntN(4) == 0,
		}
		if r.IntN(6) == 0 {
			s.length = between(r, session, 2*session)
		}
		if s.do == overtake {
			s.length = between(r, 20*time.Millisecond, 300*time.Millisecond)
		}
		p.steps = append(p.steps, s)
	}
	if r.IntN(10) == 0 {
		p.again = between(r, time.Second, storm)
	}
	p.withTransactions()
	slices.SortStableFunc(p.steps, func(a, b step) int { return int(a.at - b.at) })
	return p
}

func (p plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: cooperative=%t ordering=%v policy=%v partitions=%d keys=%d records=%d maxInFlight=%d maxUncommitted=%d maxDeliveries=%d commitInterval=%v drainTimeout=%v slack=%v members=%d again=%v transactional=%t timeout=%v",
		p.seed, p.cooperative, p.ordering, p.policy, p.partitions, p.keys, p.records, p.maxInFlight, p.maxUncommitted, p.maxDeliveries, p.commitInterval, p.drainTimeout, p.slack, p.members, p.again, p.transactional, p.timeout)
	for _, s := range p.steps {
		fmt.Fprintf(&b, "\n\t%v", s)
	}
	return b.String()
}

// key is a record's, "" for none.
func (p plan) key(part int32, offset int64) string {
	k := dice(p.seed, uint64(part)<<32|uint64(offset)|1<<62).IntN(p.keys + 1)
	if k == p.keys {
		return ""
	}
	return fmt.Sprint(k)
}

// lane names the records that are handled one after another; "" is none.
func (p plan) lane(part int32, offset int64) string {
	switch p.ordering {
	case ackpolicy.OrderByPartition:
		return "all"
	case ackpolicy.OrderByKey:
		return p.key(part, offset)
	}
	return ""
}

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

// manner is when a handler settles by a verb, if it does.
type manner uint8

const (
	byEnd manner = iota
	acksEarly
	acksSync
	acksLate // after it has returned; under Manual only, as the next two
	acksBelow
	nacksLate
	nacksEarly
)

// behaviour is what a record's handler does on an attempt.
type behaviour struct {
	work   time.Duration
	deaf   bool // it does not notice when its context ends
	end    ending
	delay  time.Duration // of a nack
	manner manner
	late   time.Duration
}

func (p plan) behaviour(part int32, offset int64, attempt int) behaviour {
	r := dice(p.seed, uint64(part)<<40|uint64(offset)<<8|uint64(attempt)|1<<63)
	b := behaviour{work: between(r, 100*time.Microsecond, 10*time.Millisecond), delay: between(r, 0, 200*time.Millisecond), late: between(r, 0, 300*time.Millisecond)}
	switch n := r.IntN(200); {
	case n < 2:
		b.work = between(r, time.Second, 10*time.Second)
	case n < 10:
		b.work = between(r, 100*time.Millisecond, time.Second)
	}
	b.deaf = r.IntN(2) == 0
	hard := 30 / attempt // sooner or later a record is done
	switch n := r.IntN(100); {
	case n >= hard:
	case n%10 < 3:
		b.end = fails
	case n%10 < 4:
		b.end = panics
	case n%10 < 5:
		b.end = signalsAck
	case n%10 < 8:
		b.end = signalsNack
	default:
		b.end = signalsReject
	}
	if r.IntN(8) == 0 {
		b.delay = between(r, time.Second, 5*time.Second)
	}
	if r.IntN(8) == 0 {
		b.late = between(r, time.Second, 5*time.Second)
	}
	switch n := r.IntN(100); {
	case p.policy == ackpolicy.Manual && (b.end == fails || b.end == panics):
		b.manner = nacksEarly // nobody else would settle it
	case b.end != succeeds:
	case n < 4:
		b.manner = acksSync
	case n < 8:
		b.manner = acksEarly
	case n < 10:
		b.manner = nacksEarly
	case p.policy != ackpolicy.Manual:
	case n < 60:
		b.manner = acksLate
	case n < 64:
		b.manner = acksBelow
	case n < 70:
		b.manner = nacksLate
	default:
		b.manner = acksEarly
	}
	return b
}
