package testkit

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Journal holds deliveries in the order in which their handlers started.
type Journal struct {
	mu         sync.Mutex
	deliveries []*ackpolicy.Delivery
}

// Add appends a delivery.
func (j *Journal) Add(d *ackpolicy.Delivery) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.deliveries = append(j.deliveries, d)
}

// All returns the deliveries so far.
func (j *Journal) All() []*ackpolicy.Delivery {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.deliveries)
}

// Find returns a delivery, or nil if there was none.
func (j *Journal) Find(offset int64, attempt int) *ackpolicy.Delivery {
	for _, d := range j.All() {
		if d.Offset() == offset && d.Attempt() == attempt {
			return d
		}
	}
	return nil
}

// Names returns the deliveries as offset#attempt.
func (j *Journal) Names() []string {
	var names []string
	for _, d := range j.All() {
		names = append(names, Name(d))
	}
	return names
}

// Wait waits for the n-th delivery and returns it.
func (j *Journal) Wait(t testing.TB, n int) *ackpolicy.Delivery {
	t.Helper()
	Eventually(t, fmt.Sprintf("delivery %d", n), func() bool { return len(j.All()) >= n })
	return j.All()[n-1]
}

// Want asserts which deliveries there were, in their order.
func (j *Journal) Want(t testing.TB, want ...string) {
	t.Helper()
	if got := j.Names(); !slices.Equal(got, want) {
		t.Errorf("deliveries: got %v, want %v", got, want)
	}
}

// Recorded puts the deliveries into the journal before h handles them.
func (j *Journal) Recorded(h Handle) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		d, ok := ackpolicy.FromMessage(msg)
		if !ok {
			return errors.New("a message without a Delivery")
		}
		j.Add(d)
		return h(msg, d)
	}
}

// Name returns a delivery as offset#attempt.
func Name(d *ackpolicy.Delivery) string { return fmt.Sprintf("%d#%d", d.Offset(), d.Attempt()) }

// WantOnce asserts which deliveries there were, in whatever order.
func WantOnce(t *testing.T, s *Service, want ...string) {
	t.Helper()
	got := s.Names()
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("deliveries: got %v, want %v", got, want)
	}
}

// SettledAll waits until so many deliveries are no longer pending.
func SettledAll(t testing.TB, s *Service, n int) {
	t.Helper()
	Eventually(t, "the settlements", func() bool {
		all := s.All()
		return len(all) == n && !slices.ContainsFunc(all, func(d *ackpolicy.Delivery) bool { return d.Status() == ackpolicy.Pending })
	})
}
