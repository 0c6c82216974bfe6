package ackpolicy

// Policy says what happens to a record when its handler ends. The zero value is AckFirst.
//
// The policies are those of FastStream (its page "Consuming Acknowledgements").
// docs/semantics.md has the complete table, and says where the two differ.
type Policy uint8

const (
	// AckFirst acks before the handler runs. What fails afterwards is lost.
	AckFirst Policy = iota
	// Ack acks when the handler has ended, whether it succeeded or failed.
	Ack
	// RejectOnError acks on success, and rejects on an error: the record is given up.
	RejectOnError
	// NackOnError acks on success, and nacks on an error: the record is delivered again.
	NackOnError
	// Manual does nothing: the handler settles the record through its Delivery.
	Manual
)

var policyNames = [...]string{"ack_first", "ack", "reject_on_error", "nack_on_error", "manual"}

func (p Policy) valid() bool { return int(p) < len(policyNames) }

// String returns the name of the policy, such as "nack_on_error".
func (p Policy) String() string { return nameOf("Policy", policyNames[:], p) }

// action is what to do with a record.
type action uint8

const (
	doNothing action = iota
	doAck
	doNack
	doReject
)

// outcome is how a handler ended.
type outcome uint8

const (
	succeeded       outcome = iota // it returned nil, and what it produced was published
	failed                         // it returned an error or panicked, or what it produced could not be published
	signalledAck                   // ErrAck, returned or panicked
	signalledNack                  // ErrNack, NackAfter
	signalledReject                // ErrReject, RejectWith
)

// decide is the table of policies and outcomes. An earlier settlement takes precedence
// over it, and so does the end of the assignment.
func decide(p Policy, o outcome) action {
	if p == AckFirst {
		return doNothing // it was acked before the handler ran
	}
	switch o {
	case signalledAck:
		return doAck
	case signalledNack:
		return doNack
	case signalledReject:
		return doReject
	}
	switch {
	case p == Manual:
		return doNothing
	case o == succeeded, p == Ack:
		return doAck
	case p == RejectOnError:
		return doReject
	}
	return doNack
}
