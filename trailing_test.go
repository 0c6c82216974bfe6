package ackpolicy_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// isolations are the two that a consumer can have.
func isolations() map[string]change {
	return map[string]change{"uncommitted": func(*ackpolicy.SubscriberConfig) {}, "committed": readCommitted}
}

func ack(*message.Message, *ackpolicy.Delivery) error { return nil }

func endOf(t testing.TB, topic string) int64 {
	t.Helper()
	end, err := brokertest.EndOffset(shared.Addrs(), topic, 0)
	check(t, err)
	return end
}

// waitNoLag waits until the stored offset is the end of the log. Kafka writes the marks of a
// transaction after it has told its end.
func waitNoLag(t testing.TB, group, topic string) {
	t.Helper()
	eventually(t, "no lag", func() bool {
		stored, err := brokertest.Committed(shared.Addrs(), group, topic, 0)
		return err == nil && stored == endOf(t, topic)
	})
}

// A partition that ends in the marks of transactions, and in aborted records, has no lag. When
// retention removes them while the group is away, nothing that is written then is skipped.
func TestTrailingControlRecords(t *testing.T) {
	t.Parallel()
	for name, isolation := range isolations() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
			transact(t, topic, 1, true)
			s := consume(t, config(group, isolation), topic, ack, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, 3)
			waitNoLag(t, group, topic)
			transact(t, topic, 3, false) // in mid-run, too
			waitNoLag(t, group, topic)
			s.stop()

			check(t, brokertest.DeleteRecords(shared.Addrs(), topic, 0, endOf(t, topic)))
			produce(t, topic, 0, numbered(5)...)
			s = consume(t, config(group, isolation, initial(sarama.OffsetNewest)), topic, ack, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, 5)
			waitNoLag(t, group, topic)
			s.stop()
			if n := len(s.journal.all()); n != 5 {
				t.Errorf("%d deliveries of 5 records", n)
			}
		})
	}
}

// A stop right behind the last record commits what lies behind it as well.
func TestTrailingControlRecordsAtTheStop(t *testing.T) {
	t.Parallel()
	for name, isolation := range isolations() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1)
			transact(t, topic, 2, true)
			eventually(t, "the mark", func() bool { return endOf(t, topic) == 3 })
			s := consume(t, config(group, isolation), topic, ack, ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, 2)
			s.stop()
			wantCommitted(t, group, topic, 0, endOf(t, topic))
		})
	}
}

// What an open transaction holds back is not passed, and comes once it is committed.
func TestOpenTransactionIsNotPassed(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(1)...)
	transact(t, topic, 1, false)
	const at = 3
	eventually(t, "the mark", func() bool { return endOf(t, topic) == at })
	open := begin(t, topic, 2)
	transact(t, topic, 1, false) // the end goes on
	s := consume(t, config(group, readCommitted), topic, ack, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, 1)
	waitCommitted(t, group, topic, 0, at)
	check(t, open.CommitTxn())
	check(t, open.Close())
	s.journal.wait(t, 3)
	waitNoLag(t, group, topic)
	s.stop()
	s.journal.want(t, "0#1", name(s.journal.all()[1]), name(s.journal.all()[2]))
	if first := s.journal.all()[1].Offset(); first != at {
		t.Errorf("the transaction's first record has offset %d, want %d", first, at)
	}
}

// Without a group the position is kept in memory only: it, too, passes them.
func TestTrailingControlRecordsWithoutAGroup(t *testing.T) {
	t.Parallel()
	const idle = 0
	broker := brokertest.NewFake(t)
	topic, at := fakeTopicOf(t, broker, 1)
	open := beginAt(t, broker, topic, 2)
	check(t, open.CommitTxn())
	check(t, open.Close())
	cfg := config("", at)
	reset := make(chan ackpolicy.PositionResetEvent, 10)
	cfg.Hooks.PositionReset = func(e ackpolicy.PositionResetEvent) { reset <- e }
	assigned := make(chan struct{}, 10)
	cfg.Hooks.Assigned = func(e ackpolicy.AssignedEvent) {
		if e.Partition == idle {
			assigned <- struct{}{}
		}
	}
	var fault atomic.Bool
	broker.Kfake().ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		broker.Kfake().KeepControl()
		if fetch := request.(*kmsg.FetchRequest); fault.Load() {
			for i := range fetch.Topics {
				for j := range fetch.Topics[i].Partitions {
					if p := &fetch.Topics[i].Partitions[j]; p.Partition == idle {
						p.FetchOffset = 99 // out of range
						fault.Store(false)
					}
				}
			}
		}
		return nil, nil, false
	})
	s := consume(t, cfg, topic, ack, ackpolicy.NackOnError.Middleware)
	s.journal.wait(t, 2)
	await(t, "the assignment", assigned)
	fault.Store(true) // ends its reader
	await(t, "the reconnect", assigned)
	check(t, brokertest.DeleteRecords(broker.Addrs(), topic, idle, 3))
	fault.Store(true)
	await(t, "the second reconnect", assigned)
	_, err := brokertest.Produce(broker.Addrs(), topic, idle, numbered(1)...)
	check(t, err)
	s.journal.wait(t, 3)
	s.stop()
	if len(reset) > 0 {
		t.Errorf("nothing was lost, and the position was reset: %+v", <-reset)
	}
}

// A partition that is idle, and read to its end, costs no requests but the watchdog's.
func TestIdlePartitionIsNotAskedFor(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := fakeTopic(t, broker, numbered(3)...)
	group := brokertest.Group(t)
	s := consume(t, config(group, at), topic, ack, ackpolicy.NackOnError.Middleware)
	check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, 3, patience))
	var asked atomic.Int32
	broker.Kfake().ControlKey(int16(kmsg.ListOffsets), func(kmsg.Request) (kmsg.Response, error, bool) {
		broker.Kfake().KeepControl()
		asked.Add(1)
		return nil, nil, false
	})
	time.Sleep(3 * time.Second) // there is no event to wait for
	if n := asked.Load(); n > 0 {
		t.Errorf("asked %d times", n)
	}
	s.stop()
}
