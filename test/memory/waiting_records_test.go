package memory_test

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// The tests of this file measure the heap of the whole process. So they are not parallel: no other test runs meanwhile.

// heap is what the process holds after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC() // the first one only takes pools' and finalizers' holds off some of it
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// consumeCounted is consume without a journal, which would hold the deliveries. It waits until n of them have begun.
func consumeCounted(t *testing.T, cfg ackpolicy.SubscriberConfig, topic string, n int64, h testkit.Handle, mw message.HandlerMiddleware) *testkit.Service {
	t.Helper()
	s := testkit.NewService(t)
	var began atomic.Int64
	s.Router.AddMiddleware(mw)
	s.Router.AddConsumerHandler("handler", topic, testkit.NewSubscriber(t, cfg, s.Log), func(msg *message.Message) error {
		defer began.Add(1)
		d, _ := ackpolicy.FromMessage(msg)
		return h(msg, d)
	})
	s.Start(t)
	testkit.Eventually(t, fmt.Sprint(n, " deliveries"), func() bool { return began.Load() >= n })
	return s
}

// Records that wait for long, nacked or pending, leave memory, all of them: a record's bytes are a part of the fetch that
// brought it, with those of all partitions, so that a few that stayed would keep all the others.
func TestWaitingRecordsLeaveMemory(t *testing.T) {
	const partitions, records, size, bound = 4, 400, 50_000, 8 * testkit.MiB // 76 MiB in all
	for name, c := range map[string]struct {
		verdict error
		policy  message.HandlerMiddleware
	}{
		"nacked":  {ackpolicy.NackAfter(time.Hour), ackpolicy.NackOnError.Middleware},
		"pending": {nil, ackpolicy.Manual.Middleware},
	} {
		t.Run(name, func(t *testing.T) {
			topic := testkit.NewTopic(t, partitions)
			for p := range int32(partitions) {
				testkit.Produce(t, topic, p, testkit.Sized(records, size)...)
			}
			cfg := testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.OrderByKey, 16))
			cfg.MaxBufferedBytes = bound
			before := heap()
			consumeCounted(t, cfg, topic, partitions*records, func(*message.Message, *ackpolicy.Delivery) error { return c.verdict }, c.policy)
			// Now, and not later: what stays is copied out of its fetch after a while.
			if more := heap() - before; more > 2*bound {
				t.Errorf("the heap is larger by %.1f MiB, want at most %d", float64(more)/testkit.MiB, 2*bound/testkit.MiB)
			}
		})
	}
}

// A few records that wait for long, nacked or pending, among many that do not, are copied out of the fetches that brought
// them, which they would keep as a whole.
func TestWaitingRecordsLeaveTheirFetch(t *testing.T) {
	const records, size, every, bound = 4000, 10_000, 40, 8 * testkit.MiB // 38 MiB in all, 1 of which waits
	topic := testkit.NewTopic(t, 1, testkit.Sized(records, size)...)
	before := heap()
	consumeCounted(t, testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.OrderByKey, 16)), topic, records,
		func(_ *message.Message, d *ackpolicy.Delivery) error {
			switch d.Offset() % (2 * every) {
			case 0:
				return nil
			case every:
				return ackpolicy.NackAfter(time.Hour)
			}
			return ackpolicy.ErrAck
		}, ackpolicy.Manual.Middleware)
	var more int64
	if !testkit.Poll(func() bool { more = heap() - before; return more <= bound }) {
		t.Errorf("the heap is larger by %.1f MiB, want at most %d", float64(more)/testkit.MiB, bound/testkit.MiB)
	}
}

// A Delivery that the application keeps after the end keeps nothing of its partition's window.
func TestKeptDeliveryKeepsLittle(t *testing.T) {
	const records, size, most = 600, 50_000, 6 * testkit.MiB // 28 MiB in all
	topic := testkit.NewTopic(t, 1, testkit.Sized(records, size)...)
	var kept []*ackpolicy.Delivery
	before := heap()
	full := make(chan struct{})
	s := consumeCounted(t, testkit.Config(brokertest.Group(t), testkit.DrainTimeout(time.Second)), topic, 3,
		func(msg *message.Message, d *ackpolicy.Delivery) error {
			kept = append(kept, d) // pending, acked, and with its handler at the end
			switch d.Offset() {
			case 1:
				return ackpolicy.ErrAck
			case 2:
				close(full)
			case 3:
				<-msg.Context().Done()
			}
			return nil
		}, ackpolicy.Manual.Middleware)
	<-full
	testkit.Eventually(t, "a full window", func() bool { return heap()-before > records*size/2 })
	s.Stop()
	if more := heap() - before; more > most {
		t.Errorf("the heap is larger by %.1f MiB, want at most %d", float64(more)/testkit.MiB, most/testkit.MiB)
	}
	for i, want := range []ackpolicy.Status{ackpolicy.Revoked, ackpolicy.Acked, ackpolicy.Revoked, ackpolicy.Revoked} {
		d := kept[i]
		if d.Topic() != topic || d.Partition() != 0 || d.Offset() != int64(i) || string(d.Key()) != fmt.Sprint("key ", i) ||
			d.Timestamp().IsZero() || d.Attempt() != 1 || d.Status() != want {
			t.Errorf("kept: topic %s, partition %d, offset %d, key %q, timestamp %v, attempt %d, %v, want offset %d, %v",
				d.Topic(), d.Partition(), d.Offset(), d.Key(), d.Timestamp(), d.Attempt(), d.Status(), i, want)
		}
	}
}
