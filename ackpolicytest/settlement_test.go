package ackpolicytest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/ackpolicytest"
)

// failures keeps what a test would have failed with.
type failures struct {
	testing.TB
	texts []string
}

func (f *failures) Helper() {}
func (f *failures) Errorf(format string, args ...any) {
	f.texts = append(f.texts, fmt.Sprintf(format, args...))
}

// An assertion that fails says what there was instead.
func TestAssertions(t *testing.T) {
	nack := ackpolicytest.Settlement{Topic: "orders", Partition: 1, Offset: 7, Attempt: 2, Status: ackpolicy.Nacked, Delay: time.Minute, Reason: errBoom}
	reject := ackpolicytest.Settlement{Topic: "orders", Partition: 1, Offset: 7, Attempt: 2, Status: ackpolicy.Rejected, Reason: errBoom}
	var letters ackpolicytest.Letters
	if err := letters.Send(context.Background(), &sarama.ConsumerMessage{}, ackpolicy.Letter{Topic: "orders", Offset: 7, Attempts: 3, Reason: errBoom}); err != nil {
		t.Fatal(err)
	}
	other := errors.New("other")
	for want, call := range map[string]func(t testing.TB){
		"": func(t testing.TB) {
			nack.WantNacked(t, 2, time.Minute)
			reject.WantRejected(t, 2, errBoom)
			reject.WantRejected(t, 2, nil)
			reject.WantStatus(t, ackpolicy.Rejected)
			letters.Want(t, "orders", 0, 7, errBoom)
			new(ackpolicytest.Letters).WantNone(t)
		},
		"got orders 1/7: nacked at attempt 2, delivered again after 1m0s, because of: boom; want it acked at attempt 2": func(t testing.TB) { nack.WantAcked(t, 2) },
		"got orders 1/7: nacked at attempt 2, delivered again after 1m0s, because of: boom; want it nacked at attempt 1": func(t testing.TB) {
			nack.WantNacked(t, 1, time.Minute)
		},
		"got orders 1/7: nacked at attempt 2, delivered again after 1m0s, because of: boom; want a delay of 1s": func(t testing.TB) {
			nack.WantNacked(t, 2, time.Second)
		},
		"got orders 1/7: rejected at attempt 2, because of: boom; want the reason: other": func(t testing.TB) { reject.WantRejected(t, 2, other) },
		"got orders 1/7: rejected at attempt 2, because of: boom; want it pending":        func(t testing.TB) { reject.WantStatus(t, ackpolicy.Pending) },
		"got the letter orders 0/7 after 3 attempts, because of: boom; want the reason: other": func(t testing.TB) {
			letters.Want(t, "orders", 0, 7, other)
		},
		"got 0 letters of orders 0/8, want one; all letters: orders 0/7 after 3 attempts, because of: boom": func(t testing.TB) {
			letters.Want(t, "orders", 0, 8, nil)
		},
		"got 1 letters, want none: orders 0/7 after 3 attempts, because of: boom": func(t testing.TB) { letters.WantNone(t) },
	} {
		got := &failures{TB: t}
		call(got)
		if want == "" && len(got.texts) > 0 || want != "" && (len(got.texts) != 1 || got.texts[0] != want) {
			t.Errorf("got %q\nwant %q", got.texts, want)
		}
	}
}

// A destination that fails keeps nothing.
func TestLettersFail(t *testing.T) {
	var letters ackpolicytest.Letters
	send := func() error {
		return letters.Send(context.Background(), &sarama.ConsumerMessage{}, ackpolicy.Letter{Reason: errBoom})
	}
	letters.Fail(errBoom)
	if err := send(); !errors.Is(err, errBoom) {
		t.Error(err)
	}
	letters.WantNone(t)
	letters.Fail(nil)
	if err := send(); err != nil || len(letters.All()) != 1 {
		t.Errorf("%v, %v", err, &letters)
	}
}
