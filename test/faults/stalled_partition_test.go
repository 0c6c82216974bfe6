package faults_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A partition whose fetches come back empty although the broker has records is reported, its sibling continues, and a
// reconnect repairs it.
func TestStalledPartition(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"group", "no group"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const stalled, healthy = 0, 1
			broker := brokertest.NewFake(t)
			topic, at := testkit.FakeTopicOf(t, broker, 2)
			group := brokertest.Group(t)
			if kind == "no group" {
				group = ""
			}
			cfg := testkit.Config(group, at)
			reported := make(chan ackpolicy.FetchStalledEvent, 10)
			cfg.Hooks.FetchStalled = func(e ackpolicy.FetchStalledEvent) { reported <- e }
			var assigned, fault atomic.Int32
			cfg.Hooks.Assigned = func(e ackpolicy.AssignedEvent) {
				if e.Partition == stalled && assigned.Add(1) == 2 {
					fault.Store(0)
				}
			}
			wait := int32(cfg.Kafka.OverwriteSaramaConfig.Consumer.MaxWaitTime / time.Millisecond)
			broker.Kfake().ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
				broker.Kfake().KeepControl()
				if fetch := request.(*kmsg.FetchRequest); fault.Load() == 1 && fetch.MaxWaitMillis == wait { // the consumer's
					for i := range fetch.Topics {
						for j := range fetch.Topics[i].Partitions {
							if p := &fetch.Topics[i].Partitions[j]; p.Partition == stalled {
								p.FetchOffset = 2 // the end: nothing comes
							}
						}
					}
				}
				return nil, nil, false
			})
			for p := range int32(2) {
				_, err := brokertest.Produce(broker.Addrs(), topic, p, testkit.Numbered(2)...)
				testkit.Check(t, err)
			}
			fault.Store(1)
			s := testkit.NewConsumer(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			seam.LookEvery(s.Sub, 200*time.Millisecond)
			s.Start(t)
			for _, reconnect := range []bool{false, true} {
				e := testkit.Await(t, "the hook", reported)
				if e.Topic != topic || e.Partition != stalled || e.Offset != 0 || e.End != 2 || e.For == 0 || e.Reconnect != reconnect {
					t.Errorf("the hook got %+v", e)
				}
			}
			s.Wait(t, 4)
			s.Stop()
			for i, d := range s.All() {
				if want := []int32{healthy, healthy, stalled, stalled}[i]; d.Partition() != want && kind == "group" {
					t.Errorf("delivery %d is of partition %d", i, d.Partition())
				}
			}
			if n := len(testkit.Containing(s.Log.At("error"), "Fetch stalled", topic, "kafka_partition=0", "offset=0")); n != 2 {
				t.Errorf("%d lines in the log: %v", n, s.Log.At("error"))
			}
		})
	}
}

// What no consumer gets, the marks and the records of aborted and of open transactions, is no stall: nothing is reported.
func TestNothingToReadIsNoStall(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	for _, commit := range []bool{true, false} {
		testkit.Transact(t, topic, 1, commit)
	}
	open := testkit.BeginTransaction(t, topic, 1)
	defer open.Close()
	cfg := testkit.Config(brokertest.Group(t), testkit.ReadCommitted)
	reported := make(chan ackpolicy.FetchStalledEvent, 10)
	cfg.Hooks.FetchStalled = func(e ackpolicy.FetchStalledEvent) { reported <- e }
	s := testkit.NewConsumer(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	const every = 50 * time.Millisecond
	seam.LookEvery(s.Sub, every)
	s.Start(t)
	s.Wait(t, 3)
	for range 20 {
		select {
		case e := <-reported:
			if e.Offset > 2 { // or the machine is slow, and the fetch of the first records with it
				t.Fatalf("reported %+v", e)
			}
		case <-time.After(every):
		}
	}
	testkit.Check(t, open.AbortTxn())
	testkit.Produce(t, topic, 0, testkit.Numbered(1)...)
	s.Wait(t, 4)
	s.Stop()
}
