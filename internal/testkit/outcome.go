package testkit

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Policies are all there are.
var Policies = []ackpolicy.Policy{
	ackpolicy.AckFirst, ackpolicy.Ack, ackpolicy.RejectOnError, ackpolicy.NackOnError, ackpolicy.Manual,
}

// Verb is a method of the Delivery that settles it.
type Verb = func(d *ackpolicy.Delivery) bool

// Verbs are those that every subscriber has.
var Verbs = []struct {
	Name string
	Call Verb
	Asks Fate
}{
	{"Ack", (*ackpolicy.Delivery).Ack, Acked},
	{"Nack", (*ackpolicy.Delivery).Nack, Nacked},
	{"NackAfter", func(d *ackpolicy.Delivery) bool { return d.NackAfter(20 * time.Millisecond) }, Nacked},
	{"Reject", func(d *ackpolicy.Delivery) bool { return d.Reject(ErrBoom) }, Rejected},
}

// Fate is what becomes of a delivery.
type Fate string

const (
	Acked    Fate = "acked"
	Nacked   Fate = "nacked"
	Rejected Fate = "rejected"
	Left     Fate = "left" // never settled, and read again by the next owner
)

// Status returns the delivery's status at the end.
func (f Fate) Status() ackpolicy.Status {
	return map[Fate]ackpolicy.Status{
		Acked: ackpolicy.Acked, Nacked: ackpolicy.Nacked, Rejected: ackpolicy.Rejected, Left: ackpolicy.Revoked,
	}[f]
}

// Fates are what becomes of it under each policy.
type Fates map[ackpolicy.Policy]Fate

// Under is a row of the table. The column AckFirst is the same in all of them.
func Under(ack, rejectOnError, nackOnError, manual Fate) Fates {
	return Fates{
		ackpolicy.AckFirst: Acked, ackpolicy.Ack: ack, ackpolicy.RejectOnError: rejectOnError,
		ackpolicy.NackOnError: nackOnError, ackpolicy.Manual: manual,
	}
}

// Always is a row with one fate for all policies but AckFirst.
func Always(f Fate) Fates { return Under(f, f, f, f) }

func Output() []*message.Message { return message.Messages{message.NewMessage("out", nil)} }

func Describe(err error, panicked any) string {
	var recovered middleware.RecoveredPanicError
	switch {
	case panicked != nil:
		return fmt.Sprintf("panic %v", panicked)
	case errors.As(err, &recovered):
		return fmt.Sprintf("recovered %v", recovered.V)
	case err == nil:
		return ""
	default:
		return err.Error()
	}
}

// FailingPublisher counts what is published.
type FailingPublisher struct {
	mu        sync.Mutex
	Fail      bool
	closed    bool
	published int
}

func (p *FailingPublisher) Publish(_ string, messages ...*message.Message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return errors.New("published after Close")
	case p.Fail:
		p.Fail = false
		return ErrBoom
	}
	p.published += len(messages)
	return nil
}

func (p *FailingPublisher) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}

// Count returns how many messages were published so far.
func (p *FailingPublisher) Count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.published
}
