package ackpolicy_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

var confirmFirst = ackpolicy.Middleware{ConfirmFirst: true}.Middleware

// Under ConfirmFirst the broker stores the record's offset before its handler starts, whatever the handler does then.
func TestConfirmFirst(t *testing.T) {
	t.Parallel()
	const records = 12
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(records)...)
	s := consume(t, config(group, noInterval), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		stored, err := brokertest.Committed(shared.Addrs(), group, topic, 0)
		if err != nil || stored != d.Offset()+1 || d.Status() != ackpolicy.Acked {
			t.Errorf("%s is %v, stored: %d, %v", name(d), d.Status(), stored, err)
		}
		switch d.Offset() % 3 {
		case 0:
			return errBoom
		case 1:
			return ackpolicy.ErrNack
		}
		return nil
	}, confirmFirst)
	s.journal.wait(t, records)
	s.stop()
	if len(s.journal.all()) != records {
		t.Errorf("deliveries: %v", s.journal.names())
	}
	wantCommitted(t, group, topic, 0, records)
}

// Without a group nothing can be confirmed: an error says so, nothing is acked, and the handler does not run.
func TestConfirmFirstWithoutGroup(t *testing.T) {
	t.Parallel()
	topic := newTopic(t, 1, numbered(1)...)
	failures := make(chan error, 100)
	s := consume(t, config(""), topic, func(*message.Message, *ackpolicy.Delivery) error { return nil },
		failuresTo(failures), confirmFirst)
	for range 2 { // so it was not acked
		err := await(t, "an error", failures)
		if !errors.Is(err, ackpolicy.ErrNoConsumerGroup) || len(with([]string{err.Error()}, "ConfirmFirst", "ConsumerGroup")) == 0 {
			t.Errorf("want an error that names the fix, got: %v", err)
		}
	}
	s.stop()
	s.journal.want(t)
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

// refuseCommits has the broker refuse commits of records; the first commit of a group's start position is none.
func refuseCommits(broker *brokertest.Broker, count int) *kfake.FaultHandle {
	return broker.Kfake().Fault(kfake.Fault{
		Keys:  []kmsg.Key{kmsg.OffsetCommit},
		Err:   kerr.CoordinatorLoadInProgress,
		Count: count,
		When: func(request kmsg.Request) bool {
			for _, topic := range request.(*kmsg.OffsetCommitRequest).Topics {
				for _, partition := range topic.Partitions {
					if partition.Offset > 0 {
						return true
					}
				}
			}
			return false
		},
	})
}

// fakeTopic is newTopic on a broker of the test's own.
func fakeTopic(t *testing.T, broker *brokertest.Broker, records ...brokertest.Record) (topic string, at change) {
	t.Helper()
	topic, at = fakeTopicOf(t, broker, 1)
	_, err := brokertest.Produce(broker.Addrs(), topic, 0, records...)
	check(t, err)
	return topic, at
}

// fakeTopicOf is an empty topic on a broker of the test's own.
func fakeTopicOf(t *testing.T, broker *brokertest.Broker, partitions int32, settings ...string) (topic string, at change) {
	t.Helper()
	topic = brokertest.Topic(t)
	check(t, brokertest.CreateTopic(broker.Addrs(), topic, partitions, settings...))
	return topic, func(c *ackpolicy.SubscriberConfig) { c.Kafka.Brokers = broker.Addrs() }
}

// A refused commit is tried again; the handler starts once one is confirmed.
func TestConfirmFirstTriesAgain(t *testing.T) {
	t.Parallel()
	const refused = 3
	broker := brokertest.NewFake(t)
	topic, at := fakeTopic(t, broker, numbered(2)...)
	group := brokertest.Group(t)
	fault := refuseCommits(broker, refused)
	s := consume(t, config(group, at), topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		stored, err := brokertest.Committed(broker.Addrs(), group, topic, 0)
		if fault.Hits() < refused || err != nil || stored != d.Offset()+1 {
			t.Errorf("%s: %d refused, stored: %d, %v", name(d), fault.Hits(), stored, err)
		}
		return nil
	}, confirmFirst)
	s.journal.wait(t, 2)
	s.stop()
	s.journal.want(t, "0#1", "1#1")
}

// A record whose commit is never confirmed never reaches its handler, and the next owner gets it.
func TestConfirmFirstNeverRunsTheUnconfirmed(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := fakeTopic(t, broker, numbered(1)...)
	group := brokertest.Group(t)
	fault := refuseCommits(broker, -1)
	cfg := config(group, at, drainTimeout(200*time.Millisecond))
	var released ackpolicy.RevokedEvent
	cfg.Hooks.Revoked = func(e ackpolicy.RevokedEvent) { released = e }
	s := consume(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, confirmFirst)
	eventually(t, "a refused commit", func() bool { return fault.Hits() > 0 })
	s.stop()
	s.journal.want(t)
	// Left, or with a commit under way just then, whose outcome the error tells.
	if released.Err == nil && (released.Offset != 0 || released.FirstLeft != 0 || released.Running != 1) {
		t.Errorf("released as %+v, want record 0 left", released)
	}
	stored, err := brokertest.Committed(broker.Addrs(), group, topic, 0)
	if err != nil || stored > 0 {
		t.Errorf("stored: %d, %v", stored, err)
	}

	fault.Remove()
	s = consume(t, config(group, at), topic, func(*message.Message, *ackpolicy.Delivery) error { return nil }, confirmFirst)
	s.journal.wait(t, 1)
	s.stop()
	s.journal.want(t, "0#1")
}

// Commits that are refused for a while lose and repeat nothing, and AckSync waits for the one that is not.
func TestRefusedCommits(t *testing.T) {
	t.Parallel()
	const records, refused = 5, 3
	broker := brokertest.NewFake(t)
	topic, at := fakeTopic(t, broker, numbered(records)...)
	group := brokertest.Group(t)
	fault := refuseCommits(broker, refused)
	var failed atomic.Int32
	hook := func(c *ackpolicy.SubscriberConfig) {
		c.Hooks.CommitFailed = func(ackpolicy.CommitFailedEvent) { failed.Add(1) }
	}
	s := consume(t, config(group, at, noInterval, hook), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if err := d.AckSync(msg.Context()); err != nil || fault.Hits() < refused {
			t.Errorf("%s: %v after %d refusals", name(d), err, fault.Hits())
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	s.journal.wait(t, records)
	s.stop()
	stored, err := brokertest.Committed(broker.Addrs(), group, topic, 0)
	if err != nil || stored != records || failed.Load() != refused || len(s.journal.all()) != records {
		t.Errorf("stored %d, %v; %d failures told; deliveries %v", stored, err, failed.Load(), s.journal.names())
	}
}
