package ackpolicytest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Letter is a letter that Letters was sent.
type Letter struct {
	ackpolicy.Letter
	Record *sarama.ConsumerMessage
}

// Letters is a DeadLetter that keeps the letters it is sent. The zero value is ready for use.
type Letters struct {
	mu   sync.Mutex
	fail error
	all  []Letter
}

var _ ackpolicy.DeadLetter = (*Letters)(nil)

// Send implements ackpolicy.DeadLetter.
func (l *Letters) Send(_ context.Context, record *sarama.ConsumerMessage, letter ackpolicy.Letter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	l.all = append(l.all, Letter{letter, record})
	return nil
}

// Fail makes Send return err from now on, and store again if err is nil.
func (l *Letters) Fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = err
}

// All returns the letters that are stored, in their order.
func (l *Letters) All() []Letter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// Want fails the test unless there is exactly one letter of a record, with a reason for which
// errors.Is(reason, target) holds; any reason will do if target is nil.
func (l *Letters) Want(t testing.TB, topic string, partition int32, offset int64, target error) {
	t.Helper()
	var of []Letter
	for _, letter := range l.All() {
		if letter.Topic == topic && letter.Partition == partition && letter.Offset == offset {
			of = append(of, letter)
		}
	}
	switch {
	case len(of) != 1:
		t.Errorf("got %d letters of %s %d/%d, want one; all letters: %s", len(of), topic, partition, offset, l)
	case target != nil && !errors.Is(of[0].Reason, target):
		t.Errorf("got the letter %s; want the reason: %v", describe(of[0]), target)
	}
}

// WantNone fails the test if there is a letter.
func (l *Letters) WantNone(t testing.TB) {
	t.Helper()
	if all := l.All(); len(all) > 0 {
		t.Errorf("got %d letters, want none: %s", len(all), l)
	}
}

// String lists the letters.
func (l *Letters) String() string {
	var texts []string
	for _, letter := range l.All() {
		texts = append(texts, describe(letter))
	}
	if len(texts) == 0 {
		return "none"
	}
	return strings.Join(texts, "; ")
}

func describe(l Letter) string {
	return fmt.Sprintf("%s %d/%d after %d attempts, because of: %v", l.Topic, l.Partition, l.Offset, l.Attempts, l.Reason)
}
