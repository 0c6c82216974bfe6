package subscriber_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// isolations are the two that a consumer can have.
func isolations() map[string]testkit.Option {
	return map[string]testkit.Option{"uncommitted": func(*ackpolicy.SubscriberConfig) {}, "committed": testkit.ReadCommitted}
}

func endOf(t testing.TB, topic string) int64 {
	t.Helper()
	end, err := brokertest.EndOffset(testkit.Shared.Addrs(), topic, 0)
	testkit.Check(t, err)
	return end
}

// waitNoLag waits until the stored offset is the end of the log. Kafka writes the marks of a
// transaction after it has reported its end.
func waitNoLag(t testing.TB, group, topic string) {
	t.Helper()
	testkit.Eventually(t, "no lag", func() bool {
		stored, err := brokertest.Committed(testkit.Shared.Addrs(), group, topic, 0)
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
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
			testkit.Transact(t, topic, 1, true)
			s := testkit.Consume(t, testkit.Config(group, isolation), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			s.Wait(t, 3)
			waitNoLag(t, group, topic)
			testkit.Transact(t, topic, 3, false) // in mid-run, too
			waitNoLag(t, group, topic)
			s.Stop()

			testkit.Check(t, brokertest.DeleteRecords(testkit.Shared.Addrs(), topic, 0, endOf(t, topic)))
			testkit.Produce(t, topic, 0, testkit.Numbered(5)...)
			s = testkit.Consume(t, testkit.Config(group, isolation, testkit.InitialOffset(sarama.OffsetNewest)), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			s.Wait(t, 5)
			waitNoLag(t, group, topic)
			s.Stop()
			if n := len(s.All()); n != 5 {
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
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1)
			testkit.Transact(t, topic, 2, true)
			testkit.Eventually(t, "the mark", func() bool { return endOf(t, topic) == 3 })
			s := testkit.Consume(t, testkit.Config(group, isolation), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			s.Wait(t, 2)
			s.Stop()
			testkit.WantCommitted(t, group, topic, 0, endOf(t, topic))
		})
	}
}

// What an open transaction holds back is not passed, and comes once it is committed.
func TestOpenTransactionIsNotPassed(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	testkit.Transact(t, topic, 1, false)
	const at = 3
	testkit.Eventually(t, "the mark", func() bool { return endOf(t, topic) == at })
	open := testkit.BeginTransaction(t, topic, 2)
	testkit.Transact(t, topic, 1, false) // the end continues
	s := testkit.Consume(t, testkit.Config(group, testkit.ReadCommitted), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 1)
	testkit.WaitCommitted(t, group, topic, 0, at)
	testkit.Check(t, open.CommitTxn())
	testkit.Check(t, open.Close())
	s.Wait(t, 3)
	waitNoLag(t, group, topic)
	s.Stop()
	s.Want(t, "0#1", testkit.Name(s.All()[1]), testkit.Name(s.All()[2]))
	if first := s.All()[1].Offset(); first != at {
		t.Errorf("the transaction's first record has offset %d, want %d", first, at)
	}
}

// Without a group the position is kept in memory only: it, too, passes them.
func TestTrailingControlRecordsWithoutAGroup(t *testing.T) {
	t.Parallel()
	const idle = 0
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopicOf(t, broker, 1)
	open := testkit.BeginTransactionAt(t, broker, topic, 2)
	testkit.Check(t, open.CommitTxn())
	testkit.Check(t, open.Close())
	cfg := testkit.Config("", at)
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
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 2)
	testkit.Await(t, "the assignment", assigned)
	fault.Store(true) // ends its reader
	testkit.Await(t, "the reconnect", assigned)
	testkit.Check(t, brokertest.DeleteRecords(broker.Addrs(), topic, idle, 3))
	fault.Store(true)
	testkit.Await(t, "the second reconnect", assigned)
	_, err := brokertest.Produce(broker.Addrs(), topic, idle, testkit.Numbered(1)...)
	testkit.Check(t, err)
	s.Wait(t, 3)
	s.Stop()
	if len(reset) > 0 {
		t.Errorf("nothing was lost, and the position was reset: %+v", <-reset)
	}
}

// A partition that is idle, and read to its end, costs no requests but the watchdog's.
func TestIdlePartitionIsNotAskedFor(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(3)...)
	group := brokertest.Group(t)
	s := testkit.Consume(t, testkit.Config(group, at), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, 0, 3, testkit.Patience))
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
	s.Stop()
}
