package ackpolicy_test

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

type ownError struct{ permanent bool }

func (ownError) Error() string     { return "own" }
func (e ownError) Permanent() bool { return e.permanent }

func TestIsPermanent(t *testing.T) {
	t.Parallel()
	second := func(_ any, err error) error { return err }
	var n int
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"no error":               {nil, false},
		"an ordinary one":        {errBoom, false},
		"a time-out":             {fmt.Errorf("call: %w", errTimeout{}), false},
		"JSON: syntax":           {json.Unmarshal([]byte("{"), &n), true},
		"JSON: another type":     {fmt.Errorf("order: %w", json.Unmarshal([]byte(`"x"`), &n)), true},
		"base64":                 {second(base64.StdEncoding.DecodeString("?")), true},
		"hexadecimal":            {second(hex.DecodeString("xx")), true},
		"hexadecimal: length":    {second(hex.DecodeString("0")), true},
		"a number":               {second(strconv.Atoi("x")), true},
		"a time":                 {second(time.Parse(time.RFC3339, "x")), true},
		"not supported":          {errors.Join(errBoom, errors.ErrUnsupported), true},
		"says that it is":        {fmt.Errorf("order: %w", ownError{true}), true},
		"says that it is not":    {ownError{false}, false},
		"says so over a decoder": {fmt.Errorf("%w: %w", ownError{false}, json.Unmarshal([]byte("{"), &n)), false},
	} {
		if got := ackpolicy.IsPermanent(test.err); got != test.want {
			t.Errorf("%s (%v): %v", name, test.err, got)
		}
	}
}

type errTimeout struct{}

func (errTimeout) Error() string { return "timed out" }
func (errTimeout) Timeout() bool { return true }

// What can never succeed is given up at once, the rest is tried again.
func TestNeverRetry(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 1, brokertest.Values("{", "unknown", "busy")...)
	cfg := config(brokertest.Group(t))
	s := consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		switch {
		case d.Offset() == 0:
			return json.Unmarshal(msg.Payload, new(int))
		case d.Offset() == 1:
			return fmt.Errorf("customer: %w", errPoison)
		case d.Attempt() < 3:
			return errBoom
		}
		return nil
	}, ackpolicy.Middleware{Policy: ackpolicy.NackOnError, Classify: ackpolicy.NeverRetry(errPoison)}.Middleware)
	s.journal.wait(t, 5)
	waitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 3)
	s.stop()
	s.journal.want(t, "0#1", "1#1", "2#1", "2#2", "2#3")
}

func TestExponentialBackoff(t *testing.T) {
	t.Parallel()
	exact := ackpolicy.ExponentialBackoff{Initial: time.Second, Max: 5 * time.Second, Multiplier: 2, NoJitter: true}
	for attempt, want := range map[int]time.Duration{
		-1: time.Second, 0: time.Second, 1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 4: 5 * time.Second, 1 << 40: 5 * time.Second,
	} {
		if got := exact.Delay(attempt, nil); got != want {
			t.Errorf("attempt %d: %v, want %v", attempt, got, want)
		}
	}
	for attempt, limit := range map[int]time.Duration{1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 50: time.Minute} {
		shortest, longest := limit, time.Duration(0)
		for range 2000 {
			d := ackpolicy.ExponentialBackoff{}.Delay(attempt, nil)
			shortest, longest = min(shortest, d), max(longest, d)
		}
		if shortest < 0 || shortest > limit/10 || longest > limit || longest < limit*9/10 {
			t.Errorf("attempt %d: from %v to %v, want it spread from 0 to %v", attempt, shortest, longest, limit)
		}
	}
}
