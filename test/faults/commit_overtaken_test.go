package faults_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A commit that the broker keeps and processes behind the last one puts the offset back. A graceful stop repairs that:
// the next member gets nothing twice.
func TestGracefulStopAfterAnOvertakenCommit(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(2)...)
	group := brokertest.Group(t)
	fake := broker.Kfake()
	held, release := make(chan struct{}, 1), make(chan struct{})
	overtaken := sync.OnceFunc(func() { close(release) })
	var first atomic.Bool
	fake.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		switch request.(*kmsg.OffsetCommitRequest).Topics[0].Partitions[0].Offset {
		case 1:
			if first.CompareAndSwap(false, true) {
				held <- struct{}{}
				fake.SleepControl(func() { <-release })
			}
		case 2:
			overtaken() // right after this one
		}
		return nil, nil, false
	})
	cfg := testkit.Config(group, at, testkit.DrainTimeout(8*time.Second))
	cfg.CommitInterval = 10 * time.Millisecond
	second := make(chan struct{})
	s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if d.Offset() == 1 {
			return testkit.Until(msg.Context(), second)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	testkit.Await(t, "the first commit", held)
	s.Wait(t, 2)
	close(second)
	s.Stop()
	if n := len(testkit.Containing(s.Log.At("info"), "put the stored offset back", "stored_offset=1", "kafka_partition_offset=2")); n != 1 {
		t.Errorf("%d lines of it", n)
	}
	stored, err := brokertest.Committed(broker.Addrs(), group, topic, 0)
	testkit.Check(t, err)
	if stored != 2 {
		t.Errorf("stored: %d", stored)
	}
	s = testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	_, err = brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(1)...)
	testkit.Check(t, err)
	s.Wait(t, 1)
	s.Stop()
	s.Want(t, "2#1")
}
