package observe_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// JoinHooks calls each hook of each observer, in their order, and one that panics keeps no other from it.
func TestJoinedHooksAreAllCalled(t *testing.T) {
	t.Parallel()
	var called []int
	observer := func(n int) (hooks ackpolicy.Hooks) {
		v := reflect.ValueOf(&hooks).Elem()
		for i := range v.NumField() {
			v.Field(i).Set(reflect.MakeFunc(v.Field(i).Type(), func([]reflect.Value) []reflect.Value {
				called = append(called, n)
				if n == 2 {
					panic("observer 2 is broken")
				}
				return nil
			}))
		}
		return hooks
	}
	joined := reflect.ValueOf(ackpolicy.JoinHooks(observer(1), ackpolicy.Hooks{}, observer(2), observer(3)))
	for i := range joined.NumField() {
		called = nil
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic is not passed on to who logs it")
				}
			}()
			joined.Field(i).Call([]reflect.Value{reflect.Zero(joined.Field(i).Type().In(0))})
		}()
		if !reflect.DeepEqual(called, []int{1, 2, 3}) {
			t.Errorf("%s: called %v", joined.Type().Field(i).Name, called)
		}
	}
	if none := ackpolicy.JoinHooks(ackpolicy.Hooks{}, ackpolicy.Hooks{}); !reflect.ValueOf(none).IsZero() {
		t.Error("hooks of nobody are set")
	}
}

// An event of a record names group, handler, topic, partition, offset and attempt, has a hash of the
// key that is the same for the same key, and how long the delivery took.
func TestEventsNameTheirRecord(t *testing.T) {
	t.Parallel()
	const took = 20 * time.Millisecond
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed("a", "b", "a")...)
	settled, committed := make(chan ackpolicy.SettledEvent, 10), make(chan ackpolicy.CommittedEvent, 10)
	letters := make(chan ackpolicy.DeadLetteredEvent, 10)
	cfg := testkit.Config(group, backoff(time.Millisecond))
	cfg.DeadLetter = &testkit.Flaky{}
	cfg.Hooks = ackpolicy.JoinHooks(
		ackpolicy.Hooks{Settled: func(e ackpolicy.SettledEvent) { settled <- e }},
		ackpolicy.Hooks{Committed: func(e ackpolicy.CommittedEvent) {
			select {
			case committed <- e:
			default:
			}
		}},
		ackpolicy.Hooks{DeadLettered: func(e ackpolicy.DeadLetteredEvent) { letters <- e }},
	)
	boom := errors.New("boom")
	o := observe(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		time.Sleep(took) // what the handler does
		switch {
		case d.Offset() == 0 && d.Attempt() == 1:
			return boom
		case d.Offset() == 1:
			return ackpolicy.RejectWith(boom)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	hashes := map[int64]uint64{}
	for _, want := range []struct {
		offset  int64
		attempt int
		status  ackpolicy.Status
	}{{0, 1, ackpolicy.Nacked}, {0, 2, ackpolicy.Acked}, {1, 1, ackpolicy.Rejected}, {2, 1, ackpolicy.Acked}} {
		e := testkit.Await(t, "a settlement", settled)
		at := ackpolicy.RecordRef{
			PartitionRef: ackpolicy.PartitionRef{Group: group, Handler: "handler", Topic: topic},
			Offset:       want.offset, Attempt: want.attempt, KeyHash: e.KeyHash,
		}
		if e.RecordRef != at || e.Status != want.status || e.Duration < took || e.Duration > 10*time.Second {
			t.Errorf("got %+v, want %+v", e, at)
		}
		hashes[e.Offset] = e.KeyHash
		if e.Offset == 1 {
			if l := testkit.Await(t, "the letter", letters); l.RecordRef != e.RecordRef || !errors.Is(l.Reason, boom) {
				t.Errorf("letter: %+v", l)
			}
		}
	}
	if hashes[0] != hashes[2] || hashes[0] == hashes[1] || hashes[0] == 0 {
		t.Errorf("hashes of keys a, b, a: %v", hashes)
	}
	if e := testkit.Await(t, "a commit", committed); e.Group != group || e.Topic != topic || e.Duration <= 0 {
		t.Errorf("commit: %+v", e)
	}
	o.Stop()
}

// A record that its policy acks although the handler failed is reported with the error, and one that is
// given up before its turn without a duration.
func TestSettledEventsOfRecordsWithoutSuccess(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	settled, boom := make(chan ackpolicy.SettledEvent, 10), errors.New("boom")
	began, release := make(chan struct{}), make(chan struct{})
	cfg := testkit.Config(brokertest.Group(t))
	cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) { settled <- e }
	o := observe(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error {
		close(began)
		<-release
		return boom
	}, ackpolicy.Ack.Middleware)
	testkit.Await(t, "the handler", began)
	testkit.Eventually(t, "record 1 to be given up before its turn", func() bool {
		return o.Sub.Reject("alice", topic, 0, 1, "not needed") == nil
	})
	close(release)
	if e := testkit.Await(t, "record 0", settled); e.Status != ackpolicy.Acked || !errors.Is(e.Reason, boom) || e.Duration <= 0 {
		t.Errorf("record 0: %+v", e)
	}
	if e := testkit.Await(t, "record 1", settled); e.Status != ackpolicy.Rejected || !errors.Is(e.Reason, ackpolicy.ErrByHand) || e.Duration != 0 {
		t.Errorf("record 1: %+v", e)
	}
	o.Stop()
}
