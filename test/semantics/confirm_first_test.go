package semantics_test

import (
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Under ConfirmFirst the broker stores the record's offset before its handler starts, whatever the handler does then.
func TestConfirmFirst(t *testing.T) {
	t.Parallel()
	const records = 12
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	s := testkit.Consume(t, testkit.Config(group, testkit.CommitOnDemand), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		stored, err := brokertest.Committed(testkit.Shared.Addrs(), group, topic, 0)
		if err != nil || stored != d.Offset()+1 || d.Status() != ackpolicy.Acked {
			t.Errorf("%s is %v, stored: %d, %v", testkit.Name(d), d.Status(), stored, err)
		}
		switch d.Offset() % 3 {
		case 0:
			return testkit.ErrBoom
		case 1:
			return ackpolicy.ErrNack
		}
		return nil
	}, testkit.ConfirmFirst)
	s.Wait(t, records)
	s.Stop()
	if len(s.All()) != records {
		t.Errorf("deliveries: %v", s.Names())
	}
	testkit.WantCommitted(t, group, topic, 0, records)
}

// Without a group nothing can be confirmed: an error says so, nothing is acked, and the handler does not run.
func TestConfirmFirstWithoutGroup(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	failures := make(chan error, 100)
	s := testkit.Consume(t, testkit.Config(""), topic, testkit.Succeed,
		failuresTo(failures), testkit.ConfirmFirst)
	for range 2 { // so it was not acked
		err := testkit.Await(t, "an error", failures)
		if !errors.Is(err, ackpolicy.ErrNoConsumerGroup) || len(testkit.Containing([]string{err.Error()}, "ConfirmFirst", "ConsumerGroup")) == 0 {
			t.Errorf("want an error that names the fix, got: %v", err)
		}
	}
	s.Stop()
	s.Want(t)
}

// failuresTo reports the errors that reach it.
func failuresTo(failures chan<- error) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			produced, err := h(msg)
			if err != nil {
				select {
				case failures <- err:
				default:
				}
			}
			return produced, err
		}
	}
}

// A refused commit is tried again; the handler starts once one is confirmed.
func TestConfirmFirstTriesAgain(t *testing.T) {
	t.Parallel()
	const refused = 3
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(2)...)
	group := brokertest.Group(t)
	fault := testkit.RefuseCommits(broker, refused)
	s := testkit.Consume(t, testkit.Config(group, at), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		stored, err := brokertest.Committed(broker.Addrs(), group, topic, 0)
		if fault.Hits() < refused || err != nil || stored != d.Offset()+1 {
			t.Errorf("%s: %d refused, stored: %d, %v", testkit.Name(d), fault.Hits(), stored, err)
		}
		return nil
	}, testkit.ConfirmFirst)
	s.Wait(t, 2)
	s.Stop()
	s.Want(t, "0#1", "1#1")
}

// A record whose commit is never confirmed never reaches its handler, and the next owner gets it.
func TestConfirmFirstNeverRunsTheUnconfirmed(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(1)...)
	group := brokertest.Group(t)
	fault := testkit.RefuseCommits(broker, -1)
	cfg := testkit.Config(group, at, testkit.DrainTimeout(200*time.Millisecond))
	var released ackpolicy.RevokedEvent
	cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released = e }
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, testkit.ConfirmFirst)
	testkit.Eventually(t, "a refused commit", func() bool { return fault.Hits() > 0 })
	s.Stop()
	s.Want(t)
	// Left, or with a commit under way just then, whose outcome the error names.
	if released.Err == nil && (released.Offset != 0 || released.FirstLeft != 0 || released.Running != 1) {
		t.Errorf("released as %+v, want record 0 left", released)
	}
	stored, err := brokertest.Committed(broker.Addrs(), group, topic, 0)
	if err != nil || stored > 0 {
		t.Errorf("stored: %d, %v", stored, err)
	}

	fault.Remove()
	s = testkit.Consume(t, testkit.Config(group, at), topic, testkit.Succeed, testkit.ConfirmFirst)
	s.Wait(t, 1)
	s.Stop()
	s.Want(t, "0#1")
}
