package ackpolicy

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
)

// Validate returns one error that joins every problem of the configuration: invalid
// policies, a Classify or other settings that are never used, a ConfirmFirst without AckFirst.
// Call it at the start of the application. It does not know SubscriberConfig.Policy.
func (m Middleware) Validate() error {
	errs := m.unknown()
	policies := append(slices.Collect(maps.Values(m.Handlers)), m.Policy)
	others := func(p Policy) bool { return p != AckFirst }
	if m.Classify != nil && !slices.ContainsFunc(policies, others) {
		errs = append(errs, errors.New("the function Classify is never called: Policy is ack_first, its zero value, which acks before the handler runs: "+
			"set Policy, to NackOnError for example"))
	}
	if m.ConfirmFirst && !slices.Contains(policies, AckFirst) {
		errs = append(errs, errors.New("setting ConfirmFirst does nothing: no handler has the policy AckFirst"))
	}
	if m.MaxDeliveries < Unlimited {
		errs = append(errs, fmt.Errorf("setting MaxDeliveries: %d: want 0 (the Subscriber's), a positive number or Unlimited", m.MaxDeliveries))
	}
	if m.MaxAge < Unlimited {
		errs = append(errs, fmt.Errorf("setting MaxAge: %v: want 0 (the Subscriber's), a positive duration or Unlimited", m.MaxAge))
	}
	if set := m.failureSettings(); set != "" && !slices.ContainsFunc(policies, others) {
		errs = append(errs, fmt.Errorf("setting %s does nothing: no handler has another policy than AckFirst, the zero value: set Policy, to NackOnError for example", set))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("ackpolicy: bad Middleware: %w", errors.Join(errs...))
}

// failureSettings returns the names of the settings for failing records that are set.
func (m Middleware) failureSettings() string {
	return failureSettings(m.Backoff != nil, m.DeadLetter != nil, m.MaxAge != 0, m.MaxDeliveries != 0)
}

func failureSettings(backoff, deadLetter, maxAge, maxDeliveries bool) string {
	var set []string
	for i, is := range []bool{backoff, deadLetter, maxAge, maxDeliveries} {
		if is {
			set = append(set, []string{"Backoff", "DeadLetter", "MaxAge", "MaxDeliveries"}[i])
		}
	}
	return strings.Join(set, ", ")
}

// unknown returns an error for each invalid policy.
func (m Middleware) unknown() (errs []error) {
	if !m.Policy.valid() {
		errs = append(errs, fmt.Errorf("Middleware.Policy: no such policy: %d", uint8(m.Policy)))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Handlers)) {
		if p := m.Handlers[name]; !p.valid() {
			errs = append(errs, fmt.Errorf("Middleware.Handlers[%q]: no such policy: %d", name, uint8(p)))
		}
	}
	return errs
}

// begin is called with the first message of a handler, which has its name. It logs an AckFirst
// that nobody chose, since that is the zero value and loses what fails: as an error if another
// setting shows that it is an oversight.
func (m *guarded) begin(d *Delivery, policy Policy, handler string) {
	if !m.begun.CompareAndSwap(false, true) {
		return
	}
	fields := watermill.LogFields{"handler_name": handler}
	effective := m.Middleware
	effective.Policy = m.usual(d)
	err := effective.Validate()
	if m.settings && d.sub == nil {
		err = errors.Join(err, fmt.Errorf("setting %s does nothing: it requires ackpolicy.NewSubscriber", m.failureSettings()))
	}
	if err != nil {
		m.logger(d).Error("The middleware cannot do what it is configured to do", err, fields)
	}
	_, named := m.Handlers[handler]
	if policy == AckFirst && !named && !m.chosen && d.ofSubscriber() == nil {
		switch set := d.failureSettings(); {
		case len(m.Handlers) > 0:
			fields["handlers"] = strings.Join(slices.Sorted(maps.Keys(m.Handlers)), ", ")
			m.logger(d).Error("Handler is not in Middleware.Handlers, and Middleware.Policy is the zero value: its messages are acked before it runs, and what fails is lost (ack_first)",
				errors.New("set Policy, or name the handler in Handlers"), fields)
		case set != "":
			m.logger(d).Error("Middleware.Policy is the zero value: messages are acked before the handler runs, what fails is lost (ack_first), and the subscriber's "+set+" cannot help",
				errors.New("set Policy; if AckFirst is meant, add ackpolicy.AckFirst.Middleware, or name the handler in Handlers"), fields)
		case err == nil:
			m.logger(d).Info("Messages are acked before the handler runs, and what fails is lost: Middleware.Policy is the zero value (ack_first)", fields)
		}
	}
	if m.names != nil && handler != "" { // it runs in a Router
		m.names.saw(handler, m.logger(d))
	}
}

// failureSettings returns the names of the subscriber's settings for failing records.
func (d *Delivery) failureSettings() string {
	if d.sub == nil {
		return ""
	}
	c := &d.sub.sub.config
	return failureSettings(c.Backoff != nil, c.DeadLetter != nil, c.MaxAge > 0, c.MaxDeliveries > 0)
}

// roll finds names in a Handlers map that no handler has. The name of a handler is known
// only with its first message. So a name is certainly wrong once more names are without a
// handler than there are handlers without a message.
type roll struct {
	policies map[string]Policy

	// Guarded by rolls.
	handlers int             // how many the middleware was added to
	known    int             // how many have had a message
	seen     map[string]bool // handlers that have had a message
	reported bool
}

// rollWait is how long after a handler's first message further handlers may be added.
var rollWait = 10 * time.Second

// rolls has a roll for each Middleware in use, by its Handlers map: a Middleware is a
// value, and the map is what its copies share.
var rolls = struct {
	sync.Mutex
	of map[uintptr]*roll
}{of: map[uintptr]*roll{}}

func rollOf(policies map[string]Policy) *roll {
	key := reflect.ValueOf(policies).Pointer() // no other map has this address while the roll refers to it
	rolls.Lock()
	defer rolls.Unlock()
	r := rolls.of[key]
	if r == nil {
		r = &roll{policies: policies, seen: map[string]bool{}}
		rolls.of[key] = r
	}
	r.handlers++
	return r
}

func (r *roll) saw(handler string, logger watermill.LoggerAdapter) {
	rolls.Lock()
	defer rolls.Unlock()
	r.known++
	r.seen[handler] = true
	if !slices.ContainsFunc(slices.Collect(maps.Keys(r.policies)), func(name string) bool { return !r.seen[name] }) {
		r.end()
	} else if len(r.missing()) > 0 {
		time.AfterFunc(rollWait, func() { r.call(logger) })
	}
}

// end removes a roll that has nothing left to find.
func (r *roll) end() {
	if key := reflect.ValueOf(r.policies).Pointer(); rolls.of[key] == r {
		delete(rolls.of, key)
	}
}

// missing returns the names without a handler, or none as long as the handlers without a
// message may account for all of them.
func (r *roll) missing() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(r.policies)) {
		if !r.seen[name] {
			names = append(names, name)
		}
	}
	if len(names) <= r.handlers-r.known {
		return nil
	}
	return names
}

func (r *roll) call(logger watermill.LoggerAdapter) {
	rolls.Lock()
	names, reported := r.missing(), r.reported
	all, unknown := slices.Sorted(maps.Keys(r.seen)), r.handlers-r.known
	if len(names) > 0 {
		r.reported = true
		r.end()
	}
	rolls.Unlock()
	if reported || len(names) == 0 {
		return
	}
	logger.Error("Middleware.Handlers has names that no handler has: their policies are not used",
		errors.New("no handler is named "+strings.Join(names, ", ")),
		watermill.LogFields{"handlers": strings.Join(all, ", "), "handlers_without_a_message": unknown})
}
