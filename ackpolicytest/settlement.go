package ackpolicytest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
)

// Settlement says how a delivery was settled.
type Settlement struct {
	Group     string
	Topic     string
	Partition int32
	Offset    int64
	Attempt   int
	Status    ackpolicy.Status
	Delay     time.Duration // of a nack: how long the record waits for its next delivery
	Reason    error         // of a nack or reject; nil if there was none
}

// String describes the settlement in one line.
func (s Settlement) String() string {
	text := fmt.Sprintf("%s %d/%d: %s", s.Topic, s.Partition, s.Offset, s.Status)
	if s.Attempt > 0 {
		text += fmt.Sprintf(" at attempt %d", s.Attempt)
	}
	if s.Status == ackpolicy.Nacked {
		text += fmt.Sprintf(", delivered again after %v", s.Delay)
	}
	if s.Reason != nil {
		text += fmt.Sprintf(", because of: %v", s.Reason)
	}
	return text
}

// WantAcked fails the test unless the delivery is acked, at this attempt.
func (s Settlement) WantAcked(t testing.TB, attempt int) {
	t.Helper()
	s.want(t, ackpolicy.Acked, attempt)
}

// WantNacked fails the test unless the delivery is nacked, at this attempt and with this delay.
func (s Settlement) WantNacked(t testing.TB, attempt int, delay time.Duration) {
	t.Helper()
	if s.want(t, ackpolicy.Nacked, attempt) && s.Delay != delay {
		t.Errorf("got %v; want a delay of %v", s, delay)
	}
}

// WantRejected fails the test unless the delivery is rejected, at this attempt and with a
// reason for which errors.Is(reason, target) holds; any reason will do if target is nil.
func (s Settlement) WantRejected(t testing.TB, attempt int, target error) {
	t.Helper()
	if s.want(t, ackpolicy.Rejected, attempt) && target != nil && !errors.Is(s.Reason, target) {
		t.Errorf("got %v; want the reason: %v", s, target)
	}
}

// WantStatus fails the test unless the delivery has this status: Pending if nothing settled
// it, Revoked if its assignment ended before.
func (s Settlement) WantStatus(t testing.TB, status ackpolicy.Status) {
	t.Helper()
	if s.Status != status {
		t.Errorf("got %v; want it %v", s, status)
	}
}

func (s Settlement) want(t testing.TB, status ackpolicy.Status, attempt int) bool {
	t.Helper()
	if s.Status != status || s.Attempt != attempt {
		t.Errorf("got %v; want it %v at attempt %d", s, status, attempt)
		return false
	}
	return true
}

// recorder keeps settlements.
type recorder struct {
	mu      sync.Mutex
	delays  map[int64]time.Duration // of nacks, by DueAt
	all     map[seam.Place][]Settlement
	changed chan struct{} // closed and replaced with each settlement
}

func newRecorder() *recorder {
	return &recorder{delays: map[int64]time.Duration{}, all: map[seam.Place][]Settlement{}, changed: make(chan struct{})}
}

// watcher records until ignored reports true.
func (r *recorder) watcher(ignored func() bool) *seam.Watcher {
	return &seam.Watcher{
		Delays: func(dueAt int64, delay time.Duration) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.delays[dueAt] = delay
		},
		Settled: func(at seam.Place, attempt int, v partition.Verdict) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if ignored() {
				return
			}
			s := settlement(at)
			s.Attempt, s.Status, s.Reason = attempt, ackpolicy.Status(v.Status), v.Reason
			if v.Status == partition.Nacked {
				s.Delay = r.delays[v.DueAt]
			}
			r.all[at] = append(r.all[at], s)
			close(r.changed)
			r.changed = make(chan struct{})
		},
	}
}

func settlement(at seam.Place) Settlement {
	return Settlement{Group: at.Group, Topic: at.Topic, Partition: at.Partition, Offset: at.Offset}
}

// of returns the settlements of a record, in their order.
func (r *recorder) of(at seam.Place) []Settlement {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all[at])
}

// last returns the last settlement of a record, a pending one if there is none.
func (r *recorder) last(at seam.Place) Settlement {
	if all := r.of(at); len(all) > 0 {
		return all[len(all)-1]
	}
	return settlement(at)
}

// next returns a channel that is closed with the next settlement.
func (r *recorder) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}
