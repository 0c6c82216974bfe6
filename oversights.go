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

// Validate returns every problem of the configuration in one error: policies that do
// not exist, a Classify that no policy would ask, a ConfirmFirst without AckFirst.
// Call it at the start of the application.
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
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("ackpolicy: bad Middleware: %w", errors.Join(errs...))
}

// unknown returns an error for each policy that does not exist.
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

// begin is called with a handler's first message, which names it. It logs what can
// only be an oversight, since AckFirst is the zero value and loses what fails.
func (m *guarded) begin(d *Delivery, policy Policy, handler string) {
	if !m.begun.CompareAndSwap(false, true) {
		return
	}
	fields := watermill.LogFields{"handler_name": handler}
	if m.unsound != nil {
		m.logger(d).Error("The middleware cannot do what it is configured to do", m.unsound, fields)
	}
	_, named := m.Handlers[handler]
	if policy == AckFirst && !named && !m.chosen {
		switch set := d.failureSettings(); {
		case len(m.Handlers) > 0:
			fields["handlers"] = strings.Join(slices.Sorted(maps.Keys(m.Handlers)), ", ")
			m.logger(d).Error("Handler is not in Middleware.Handlers, and Middleware.Policy is the zero value: its messages are acked before it runs, and what fails is lost (ack_first)",
				errors.New("set Policy, or name the handler in Handlers"), fields)
		case set != "":
			m.logger(d).Error("Middleware.Policy is the zero value: messages are acked before the handler runs, what fails is lost (ack_first), and the subscriber's "+set+" cannot help",
				errors.New("set Policy; if AckFirst is meant, add ackpolicy.AckFirst.Middleware, or name the handler in Handlers"), fields)
		}
	}
	if m.names != nil && handler != "" { // it runs in a Router
		m.names.answer(handler, m.logger(d))
	}
}

// failureSettings names what its subscriber is told to do with records that fail.
func (d *Delivery) failureSettings() string {
	if d.sub == nil {
		return ""
	}
	c := &d.sub.sub.config
	var set []string
	for name, is := range map[string]bool{
		"Backoff": c.Backoff != nil, "DeadLetter": c.DeadLetter != nil, "MaxAge": c.MaxAge > 0, "MaxDeliveries": c.MaxDeliveries > 0,
	} {
		if is {
			set = append(set, name)
		}
	}
	slices.Sort(set)
	return strings.Join(set, ", ")
}

// roll finds names in a Handlers map that no handler has. A handler's name is
// known with its first message only: there is one name too many as soon as more are unanswered
// than handlers unknown.
type roll struct {
	policies map[string]Policy

	// Guarded by rolls.
	handlers int // that the middleware was added to
	known    int // that have had a message
	answered map[string]bool
	told     bool
}

// rollWait is how long after a handler's first message others may still be added.
var rollWait = 10 * time.Second

// rolls has those of all Middlewares that are in use, by their Handlers map: a
// Middleware is a value, and the map is what its copies share.
var rolls = struct {
	sync.Mutex
	of map[uintptr]*roll
}{of: map[uintptr]*roll{}}

func rollOf(policies map[string]Policy) *roll {
	key := reflect.ValueOf(policies).Pointer() // of no other map while the roll holds this one
	rolls.Lock()
	defer rolls.Unlock()
	r := rolls.of[key]
	if r == nil {
		r = &roll{policies: policies, answered: map[string]bool{}}
		rolls.of[key] = r
	}
	r.handlers++
	return r
}

func (r *roll) answer(handler string, logger watermill.LoggerAdapter) {
	rolls.Lock()
	defer rolls.Unlock()
	r.known++
	r.answered[handler] = true
	if !slices.ContainsFunc(slices.Collect(maps.Keys(r.policies)), func(name string) bool { return !r.answered[name] }) {
		r.end()
	} else if len(r.missing()) > 0 {
		time.AfterFunc(rollWait, func() { r.call(logger) })
	}
}

// end lets go of a roll whose question is settled.
func (r *roll) end() {
	if key := reflect.ValueOf(r.policies).Pointer(); rolls.of[key] == r {
		delete(rolls.of, key)
	}
}

// missing returns the names that no handler can have; too many where some handlers
// are unknown, but none where they may account for all.
func (r *roll) missing() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(r.policies)) {
		if !r.answered[name] {
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
	names, told := r.missing(), r.told
	all, unknown := slices.Sorted(maps.Keys(r.answered)), r.handlers-r.known
	if len(names) > 0 {
		r.told = true
		r.end()
	}
	rolls.Unlock()
	if told || len(names) == 0 {
		return
	}
	logger.Error("Middleware.Handlers has names that no handler has: their policies are not used",
		errors.New("no handler is named "+strings.Join(names, ", ")),
		watermill.LogFields{"handlers": strings.Join(all, ", "), "handlers_without_a_message": unknown})
}
