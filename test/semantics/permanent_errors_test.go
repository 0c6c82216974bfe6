package semantics_test

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
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

type ownError struct{ permanent bool }

func (ownError) Error() string { return "own" }

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
		"an ordinary one":        {testkit.ErrBoom, false},
		"a time-out":             {fmt.Errorf("call: %w", errTimeout{}), false},
		"JSON: syntax":           {json.Unmarshal([]byte("{"), &n), true},
		"JSON: another type":     {fmt.Errorf("order: %w", json.Unmarshal([]byte(`"x"`), &n)), true},
		"base64":                 {second(base64.StdEncoding.DecodeString("?")), true},
		"hexadecimal":            {second(hex.DecodeString("xx")), true},
		"hexadecimal: length":    {second(hex.DecodeString("0")), true},
		"a number":               {second(strconv.Atoi("x")), true},
		"a time":                 {second(time.Parse(time.RFC3339, "x")), true},
		"not supported":          {errors.Join(testkit.ErrBoom, errors.ErrUnsupported), true},
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
	topic := testkit.NewTopic(t, 1, brokertest.Values("{", "unknown", "busy")...)
	cfg := testkit.Config(brokertest.Group(t))
	s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		switch {
		case d.Offset() == 0:
			return json.Unmarshal(msg.Payload, new(int))
		case d.Offset() == 1:
			return fmt.Errorf("customer: %w", testkit.ErrPoison)
		case d.Attempt() < 3:
			return testkit.ErrBoom
		}
		return nil
	}, ackpolicy.Middleware{Policy: ackpolicy.NackOnError, Classify: ackpolicy.NeverRetry(testkit.ErrPoison)}.Middleware)
	s.Wait(t, 5)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 3)
	s.Stop()
	s.Want(t, "0#1", "1#1", "2#1", "2#2", "2#3")
}
