package ackpolicytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Destination is a DeadLetter for TestDeadLetter, and what shows whether it works.
type Destination struct {
	DeadLetter ackpolicy.DeadLetter
	// Stored returns the values of the records whose letters are stored, in the order in which
	// they were stored. It may leave out those of other tests.
	Stored func() ([][]byte, error)
	// Break makes the storage unavailable, and available again. nil skips what needs it.
	Break func(broken bool)
	// Refused is a record whose letter the storage refuses for good, such as one that is too
	// large. nil skips what needs it.
	Refused *sarama.ConsumerMessage
}

// sendPatience is how long Send may take in TestDeadLetter.
const sendPatience = 10 * time.Second

// TestDeadLetter tests an implementation of ackpolicy.DeadLetter. open is called for each
// part of the test. It returns the destination, with what it stores.
func TestDeadLetter(t *testing.T, open func(t *testing.T) Destination) {
	for _, part := range []struct {
		name string
		test func(s *suite)
	}{
		{"every record is stored", (*suite).everyRecord},
		{"records of one key are stored in order", (*suite).order},
		{"concurrent calls", (*suite).concurrent},
		{"the record and the letter are not changed", (*suite).unchanged},
		{"a letter that is sent again", (*suite).again},
		{"the end of the context", (*suite).canceled},
		{"a storage that is unavailable", (*suite).unavailable},
		{"a letter that is refused", (*suite).refused},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(&suite{t, open(t)}) })
	}
}

type suite struct {
	*testing.T
	Destination
}

// send calls Send, which has to return.
func (s *suite) send(ctx context.Context, r *sarama.ConsumerMessage) error {
	s.Helper()
	sent := make(chan error, 1)
	go func() {
		defer func() {
			if v := recover(); v != nil {
				sent <- fmt.Errorf("Send panics: %v", v)
			}
		}()
		sent <- s.DeadLetter.Send(ctx, r, letterOf(r))
	}()
	timer := time.NewTimer(sendPatience)
	defer timer.Stop()
	select {
	case err := <-sent:
		return err
	case <-timer.C:
		s.Fatalf("Send has not returned after %v; it must when its context ends", sendPatience)
		return nil
	}
}

// sendNow is send with a context that lasts as long as it waits.
func (s *suite) sendNow(r *sarama.ConsumerMessage) error {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), sendPatience/2)
	defer cancel()
	return s.send(ctx, r)
}

func (s *suite) mustSend(r *sarama.ConsumerMessage) {
	s.Helper()
	if err := s.sendNow(r); err != nil {
		s.Fatalf("Send: %v", err)
	}
}

func (s *suite) stored() []string {
	s.Helper()
	values, err := s.Stored()
	if err != nil {
		s.Fatal(err)
	}
	var texts []string
	for _, v := range values {
		texts = append(texts, string(v))
	}
	return texts
}

// wantStored fails unless each value is stored, at least once.
func (s *suite) wantStored(values ...string) {
	s.Helper()
	counts := map[string]int{}
	for _, v := range s.stored() {
		counts[v]++
	}
	for _, v := range values {
		if counts[v] == 0 {
			s.Errorf("Send has returned nil, but the record with value %q is not stored", v)
		}
	}
}

func recordOf(offset int64, key, value string) *sarama.ConsumerMessage {
	return &sarama.ConsumerMessage{
		Topic: "orders", Partition: 1, Offset: offset, Timestamp: time.UnixMilli(1_700_000_000_000),
		Key: []byte(key), Value: []byte(value),
		Headers: []*sarama.RecordHeader{{Key: []byte("header"), Value: []byte("value")}},
	}
}

func letterOf(r *sarama.ConsumerMessage) ackpolicy.Letter {
	return ackpolicy.Letter{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp,
		Group: "group", Handler: "handler", Subscriber: "kafka.Subscriber",
		Reason: errors.New("the reason"), Attempts: 3, RejectedAt: time.Now(),
	}
}

// everyRecord sends what records may look like.
func (s *suite) everyRecord() {
	plain := recordOf(0, "key", "plain")
	noKey := recordOf(1, "", "without a key")
	noKey.Key = nil
	emptyKey := recordOf(2, "", "with an empty key")
	noHeaders := recordOf(3, "key", "without headers")
	noHeaders.Headers = nil
	odd := recordOf(4, "\xff\x00", "bytes: \xff\x00")
	odd.Headers = append(odd.Headers, &sarama.RecordHeader{Key: []byte("header"), Value: []byte("\xff")}, &sarama.RecordHeader{Key: []byte{}})
	noTime := recordOf(5, "key", "without a timestamp")
	noTime.Timestamp = time.Time{}
	tombstone := recordOf(6, "key", "")
	tombstone.Value = nil
	large := recordOf(7, "key", strings.Repeat(".", 100_000))
	var values []string
	for _, r := range []*sarama.ConsumerMessage{plain, noKey, emptyKey, noHeaders, odd, noTime, tombstone, large} {
		if err := s.sendNow(r); err != nil {
			s.Errorf("Send of a record %q: %v", r.Value[:min(len(r.Value), 30)], err)
			continue
		}
		values = append(values, string(r.Value))
	}
	s.wantStored(values...)
}

func (s *suite) order() {
	const n = 10
	for i := range n {
		s.mustSend(recordOf(int64(i), "key", fmt.Sprint(i)))
	}
	next := 0
	for _, v := range s.stored() {
		if v == fmt.Sprint(next) {
			next++
		}
	}
	if next != n {
		s.Errorf("records with one key, sent one after the other, are stored in another order: %v", s.stored())
	}
}

// concurrent sends as many letters at once as a subscription does.
func (s *suite) concurrent() {
	const n = 64
	var all sync.WaitGroup
	var values []string
	errs := make([]error, n)
	for i := range n {
		r := recordOf(int64(i), fmt.Sprint("key ", i), fmt.Sprint("value ", i))
		values = append(values, string(r.Value))
		all.Go(func() { errs[i] = s.DeadLetter.Send(context.Background(), r, letterOf(r)) })
	}
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(sendPatience):
		s.Fatalf("%d concurrent calls of Send have not returned after %v", n, sendPatience)
	}
	if err := errors.Join(errs...); err != nil {
		s.Fatalf("Send: %v", err)
	}
	s.wantStored(values...)
}

// unchanged: the letter is sent again if this fails, and the hooks get it.
func (s *suite) unchanged() {
	r, before := recordOf(0, "key", "value"), recordOf(0, "key", "value")
	s.mustSend(r)
	if !bytes.Equal(r.Key, before.Key) || !bytes.Equal(r.Value, before.Value) || !reflect.DeepEqual(r.Headers, before.Headers) {
		s.Error("Send changes the record")
	}
}

// again: the result of the first call may have been lost.
func (s *suite) again() {
	r := recordOf(0, "key", "value")
	s.mustSend(r)
	if err := s.sendNow(r); err != nil {
		s.Errorf("the second Send of a letter: %v; it must succeed, since the result of the first may be lost", err)
	}
	s.wantStored("value")
}

// canceled: the partition was released. Nobody waits for what happens to the letter.
func (s *suite) canceled() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.send(ctx, recordOf(0, "key", "value")); err == nil {
		s.wantStored("value")
	} else if permanent(err) {
		s.Errorf("Send with an ended context: %v is permanent: the letter would be given up", err)
	}
}

func (s *suite) unavailable() {
	if s.Break == nil {
		s.Skip("Destination.Break is nil")
	}
	r := recordOf(0, "key", "value")
	s.Break(true)
	err := s.sendNow(r)
	s.Break(false)
	switch {
	case err == nil:
		s.wantStored("value")
	case permanent(err):
		s.Errorf("Send to a storage that is unavailable: %v is permanent: the letter would be given up", err)
	}
	s.mustSend(r)
	s.wantStored("value")
}

func (s *suite) refused() {
	if s.Refused == nil {
		s.Skip("Destination.Refused is nil")
	}
	if err := s.sendNow(s.Refused); err == nil {
		s.Error("Send of a record that is refused returns nil: the record would be lost")
	} else if !permanent(err) {
		s.Errorf("Send of a record that is refused for good: %v has no method Permanent() bool that returns true: it would be sent again without end", err)
	}
}

func permanent(err error) bool {
	var p interface{ Permanent() bool }
	return errors.As(err, &p) && p.Permanent()
}
