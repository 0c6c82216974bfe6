package batches_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// ConfirmFirst with batches is an error that says so. The handler does not run, and nothing is acked.
func TestConfirmFirstInBatches(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	s, c := consume(t, testkit.Config(group), untilFull(3), topic, succeed, testkit.ConfirmFirst)
	testkit.Eventually(t, "two errors", func() bool {
		return len(testkit.Containing(s.Log.At("error"), "ConfirmFirst does not work with batches, nothing was acked: use Subscriber.Subscribe")) >= 2
	})
	s.Stop()
	if len(c.get()) > 0 {
		t.Errorf("the handler ran: %v", c.names())
	}
	testkit.WantCommitted(t, group, topic, 0, 0)
}

// Under Manual the records of a batch stay pending when its handler has returned, later batches come, and records are
// settled in any order, by any verb.
func TestManualInBatches(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(8)...)
	s, c := consume(t, testkit.Config(group, testkit.CommitOnDemand), untilFull(4), topic, succeed, ackpolicy.Manual.Middleware)
	testkit.Eventually(t, "two batches", func() bool { return len(c.get()) == 2 })
	first, second := c.get()[0], c.get()[1]
	testkit.Check(t, second[1].AckSync(context.Background())) // it does not wait for earlier ones
	if d := first[0]; d.Status() != ackpolicy.Pending {
		t.Errorf("%s is %v", testkit.Name(d), d.Status())
	}
	if !first[0].Reject(testkit.ErrBoom) || !first[2].AckCumulative() || !first[3].Ack() || !second[3].AckCumulative() {
		t.Error("a verb was refused")
	}
	s.Stop()
	testkit.WantCommitted(t, group, topic, 0, 8)
	if got := fmt.Sprint(c.names()); got != "[[0#1 1#1 2#1 3#1] [4#1 5#1 6#1 7#1]]" {
		t.Errorf("calls: %s", got)
	}
}

// A handler may wait until one record of its batch is stored as acked, though it has the earlier ones in hand. What it
// fails with then is the others' result.
func TestAckSyncInABatch(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(4)...)
	s, c := consume(t, testkit.Config(group, testkit.CommitOnDemand), ackpolicy.BatchConfig{Size: 4, Wait: time.Second}, topic,
		func(ctx context.Context, _ []*message.Message, ds []*ackpolicy.Delivery) error {
			if ds[0].Attempt() > 1 {
				return nil
			}
			if err := ds[2].AckSync(ctx); err != nil {
				t.Error(err)
			}
			if position := testkit.StoredPosition(t, group, topic); position.Offset != 0 || position.Metadata == "" {
				t.Errorf("stored: offset %d, metadata %q", position.Offset, position.Metadata)
			}
			return ackpolicy.NackAfter(0)
		}, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "all but one again", func() bool { return c.count()[testkit.RecordID{Offset: 3}] == 2 })
	s.Stop()
	testkit.WantCommitted(t, group, topic, 0, 4)
	if n := c.count()[testkit.RecordID{Offset: 2}]; n != 1 {
		t.Errorf("the record that was acked was delivered %d times", n)
	}
}

// SubscriberConfig.Policy AckFirst acks the records of a batch while its handler runs, also where that is no HandleBatch.
func TestAckFirstOfSubscriberInBatches(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	cfg := testkit.Config(group)
	first := ackpolicy.AckFirst
	cfg.Policy = &first
	sub := testkit.NewSubscriber(t, cfg, testkit.NewLog(t))
	batches, err := sub.Batches(untilFull(3)).Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	msg := testkit.Await(t, "a batch", batches)
	testkit.WaitCommitted(t, group, topic, 0, 3)
	msg.Nack() // too late
	testkit.Check(t, sub.Close())
	testkit.WantCommitted(t, group, topic, 0, 3)
}

// MaxPerSecond counts records, not batches: a batch goes out with what a second allows.
func TestMaxPerSecondOfBatches(t *testing.T) {
	t.Parallel()
	const n, perSecond = 150, 50
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(n)...)
	s, c := testkit.NewService(t), &calls{}
	sub := testkit.NewSubscriber(t, testkit.Config(group), s.Log)
	testkit.Check(t, sub.SetLimits("alice", ackpolicy.Limits{MaxPerSecond: perSecond}))
	s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.Router.AddConsumerHandler("handler", topic, sub.Batches(ackpolicy.BatchConfig{Size: n, Wait: time.Millisecond}), c.recorded(succeed))
	began := time.Now()
	s.Start(t)
	testkit.WaitCommitted(t, group, topic, 0, n)
	took := time.Since(began)
	s.Stop()
	if took < (n-1)*time.Second/perSecond-100*time.Millisecond {
		t.Errorf("%d records took %v", n, took)
	}
	for _, call := range c.names() {
		if len(call) > 2*perSecond {
			t.Errorf("a batch of %d", len(call))
		}
	}
	if got := len(c.count()); got != n {
		t.Errorf("%d records", got)
	}
}

// Delays by metadata apply to single records of a batch: one that was published with a delay, and one that the handler
// delays and fails. A DelayOnError around HandleBatch sees no error of single records, so it delays none.
func TestDelaysInBatches(t *testing.T) {
	t.Parallel()
	const wait, slack = 1200 * time.Millisecond, 50 * time.Millisecond
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1)
	due := time.Now().Add(wait)
	late := message.NewMessage("", nil)
	delay.Message(late, delay.For(wait))
	records := testkit.Numbered(4)
	for _, key := range []string{delay.DelayedUntilKey, delay.DelayedForKey} {
		records[0].Headers = append(records[0].Headers, sarama.RecordHeader{Key: []byte(key), Value: []byte(late.Metadata[key])})
	}
	testkit.Produce(t, topic, 0, records...)
	var nacked, again, undelayed atomic.Int64 // times
	around := middleware.DelayOnError{InitialInterval: time.Hour, MaxInterval: time.Hour, Multiplier: 1}
	s, _ := consume(t, testkit.Config(group, testkit.Ordering(ackpolicy.Unordered, 0)), ackpolicy.BatchConfig{Wait: 50 * time.Millisecond}, topic,
		func(_ context.Context, messages []*message.Message, ds []*ackpolicy.Delivery) error {
			failed := ackpolicy.BatchError{}
			for i, d := range ds {
				switch now := time.Now(); {
				case d.Offset() == 0 && now.Before(due.Add(-slack)):
					t.Errorf("the delayed record came %v early", due.Sub(now))
				case d.Offset() == 1 && d.Attempt() == 1:
					delay.Message(messages[i], delay.For(wait))
					failed[i] = testkit.ErrBoom
					nacked.Store(now.UnixNano())
				case d.Offset() == 1:
					again.Store(now.UnixNano())
				case d.Offset() == 2 && d.Attempt() == 1:
					failed[i] = testkit.ErrBoom
				case d.Offset() == 2:
					undelayed.Store(now.UnixNano())
				}
			}
			return failed
		}, ackpolicy.NackOnError.Middleware, around.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 4)
	s.Stop()
	if took := time.Duration(again.Load() - nacked.Load()); took < wait-slack {
		t.Errorf("the record that the handler delayed came again after %v", took)
	}
	if undelayed.Load() == 0 {
		t.Error("the one that failed did not come again")
	}
}
