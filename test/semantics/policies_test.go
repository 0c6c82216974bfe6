package semantics_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestParsePolicy(t *testing.T) {
	t.Parallel()
	for want, names := range map[ackpolicy.Policy][]string{
		ackpolicy.AckFirst:      {"ack_first", "AckFirst", "ACK_FIRST", "ack-first"},
		ackpolicy.Ack:           {"ack", "Ack", "ACK"},
		ackpolicy.RejectOnError: {"reject_on_error", "RejectOnError", "REJECT_ON_ERROR"},
		ackpolicy.NackOnError:   {"nack_on_error", "NackOnError", "NACK_ON_ERROR"},
		ackpolicy.Manual:        {"manual", "Manual", "MANUAL"},
	} {
		if want.String() != names[0] {
			t.Errorf("String: %q, want %q", want, names[0])
		}
		for _, name := range names {
			if got, err := ackpolicy.ParsePolicy(name); err != nil || got != want {
				t.Errorf("ParsePolicy(%q): %v, %v", name, got, err)
			}
		}
	}
	for _, name := range []string{"", "nack", "auto", "nack_on_errors", "Policy(1)"} {
		_, err := ackpolicy.ParsePolicy(name)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) || !strings.Contains(err.Error(), "nack_on_error") {
			t.Errorf("ParsePolicy(%q): want an error that names the policies, got %v", name, err)
		}
	}
	if zero := ackpolicy.Policy(0); zero != ackpolicy.AckFirst {
		t.Errorf("the zero value is %v", zero)
	}
}

func TestPolicyAsText(t *testing.T) {
	t.Parallel()
	type config struct{ Policies map[string]ackpolicy.Policy }
	in := config{map[string]ackpolicy.Policy{}}
	for _, policy := range testkit.Policies {
		in.Policies[policy.String()] = policy
	}
	text, err := json.Marshal(in)
	testkit.Check(t, err)
	var out config
	testkit.Check(t, json.Unmarshal(text, &out))
	for name, policy := range in.Policies {
		if out.Policies[name] != policy {
			t.Errorf("%s became %v in %s", name, out.Policies[name], text)
		}
	}
	if _, err := ackpolicy.Policy(99).MarshalText(); err == nil {
		t.Error("MarshalText of no policy: no error")
	}
	policy := ackpolicy.Manual
	if err := policy.UnmarshalText([]byte("nonsense")); err == nil || policy != ackpolicy.Manual {
		t.Errorf("UnmarshalText of nonsense: %v, %v", policy, err)
	}
}

// A policy that does not exist is no reason to ack anything.
func TestInvalidPolicy(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	for name, mw := range map[string]ackpolicy.Middleware{
		"Policy":   {Policy: 99},
		"Handlers": {Policy: ackpolicy.Ack, Handlers: map[string]ackpolicy.Policy{"other": 98}},
	} {
		t.Run(name, func(t *testing.T) {
			group := brokertest.Group(t)
			failures := make(chan error, 1)
			s := testkit.Consume(t, testkit.Config(group), topic, testkit.Succeed,
				failuresTo(failures), mw.Middleware)
			if err := testkit.Await(t, "an error", failures); !strings.Contains(err.Error(), name) {
				t.Errorf("does not name the field: %v", err)
			}
			s.Stop()
			s.Want(t)
			testkit.WantCommitted(t, group, topic, 0, 0)
		})
	}
}

// Each handler has its policy; one that has none is logged, once.
func TestPolicyPerHandler(t *testing.T) {
	t.Parallel()
	s, warnings, group := testkit.NewService(t), testkit.NewLog(t), brokertest.Group(t)
	sub := testkit.NewSubscriber(t, testkit.Config(group), s.Log)
	s.Router.AddMiddleware(ackpolicy.Middleware{
		Handlers: map[string]ackpolicy.Policy{"acks": ackpolicy.Ack, "nacks": ackpolicy.NackOnError},
		Logger:   warnings,
	}.Middleware)
	cases := map[string][]string{
		"acks":     {"0#1", "1#1"},
		"nacks":    {"0#1", "0#2", "1#1"},
		"unlisted": {"0#1", "1#1"},
	}
	topics, journals := map[string]string{}, map[string]*testkit.Journal{}
	for handler := range cases {
		topics[handler], journals[handler] = testkit.NewTopic(t, 1, testkit.Numbered(2)...), &testkit.Journal{}
		s.Router.AddConsumerHandler(handler, topics[handler], sub, journals[handler].Recorded(
			func(_ *message.Message, d *ackpolicy.Delivery) error {
				if early := d.Status() == ackpolicy.Acked; early != (handler == "unlisted") {
					t.Errorf("%s starts with a delivery that is %v", handler, d.Status())
				}
				if d.Offset() == 0 && d.Attempt() == 1 {
					return testkit.ErrBoom
				}
				return nil
			}))
	}
	s.Start(t)
	for handler, want := range cases {
		journals[handler].Wait(t, len(want))
	}
	s.Stop()
	for handler, want := range cases {
		journals[handler].Want(t, want...)
		testkit.WantCommitted(t, group, topics[handler], 0, 2)
	}
	if reported := warnings.At("error", "info"); len(reported) != 1 || len(testkit.Containing(reported, "unlisted")) != 1 {
		t.Errorf("want one line about the handler without a policy, got %q", reported)
	}
}

var (
	errPermanent = errors.New("permanent")
	errAckFirst  = errors.New("classified as AckFirst")
	errInvalid   = errors.New("classified as no policy at all")
	errManual    = errors.New("classified as Manual")
)

type classifier struct {
	mu   sync.Mutex
	seen []error
}

func (c *classifier) classify(err error) (ackpolicy.Policy, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, err)
	switch {
	case errors.Is(err, errPermanent):
		return ackpolicy.RejectOnError, true
	case errors.Is(err, errAckFirst):
		return ackpolicy.AckFirst, true
	case errors.Is(err, errInvalid):
		return ackpolicy.Policy(99), true
	case errors.Is(err, errManual):
		return ackpolicy.Manual, true
	}
	return ackpolicy.Manual, false
}

func TestPolicyPerError(t *testing.T) {
	t.Parallel()
	records := []struct {
		err  error
		want ackpolicy.Status // of the first delivery, under NackOnError
	}{
		{testkit.ErrBoom, ackpolicy.Nacked},
		{fmt.Errorf("order 7: %w", errPermanent), ackpolicy.Rejected},
		{errAckFirst, ackpolicy.Nacked},
		{errInvalid, ackpolicy.Nacked},
		{ackpolicy.ErrReject, ackpolicy.Rejected},
		{nil, ackpolicy.Acked},
		{errManual, ackpolicy.Revoked},
	}
	for _, policy := range []ackpolicy.Policy{ackpolicy.NackOnError, ackpolicy.AckFirst} {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(len(records))...)
			var c classifier
			s := testkit.Consume(t, testkit.Config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Attempt() > 1 {
					return nil
				}
				return records[d.Offset()].err
			}, ackpolicy.Middleware{Policy: policy, Classify: c.classify}.Middleware)
			if policy == ackpolicy.AckFirst {
				s.Wait(t, len(records))
				s.Stop()
				testkit.WantCommitted(t, group, topic, 0, int64(len(records)))
				if len(c.seen) > 0 {
					t.Errorf("Classify was asked about %v", c.seen)
				}
				return
			}
			s.Wait(t, len(records)+3)
			s.Stop()
			testkit.WantCommitted(t, group, topic, 0, int64(len(records)-1))
			for _, d := range s.All() {
				if want := records[d.Offset()].want; d.Attempt() == 1 && d.Status() != want {
					t.Errorf("%v: %v, want %v", records[d.Offset()].err, d.Status(), want)
				}
			}
			if want := []error{testkit.ErrBoom, records[1].err, errAckFirst, errInvalid, errManual}; !slices.Equal(c.seen, want) {
				t.Errorf("Classify was asked about %v, want %v", c.seen, want)
			}
		})
	}
}
