package batches_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A drain does not wait for a batch to be full: what is collected is handled, and committed.
func TestDrainFlushes(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(10)...)
	sub := testkit.NewSubscriber(t, testkit.Config(group), testkit.NewLog(t))
	batches, err := sub.Batches(untilFull(500)).Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	handled := make(chan int, 1)
	go func() {
		n := 0
		for msg := range batches {
			b, _ := ackpolicy.BatchFromMessage(msg)
			n += len(b.Messages())
			msg.Ack()
		}
		handled <- n
	}()
	testkit.Eventually(t, "the records are collected", func() bool {
		state := sub.State()
		return len(state.Subscriptions) == 1 && len(state.Subscriptions[0].Partitions) == 1 && state.Subscriptions[0].Partitions[0].InFlight == 10
	})
	if most := sub.State().Subscriptions[0].MaxInFlight; most != 500 {
		t.Errorf("10 records of at most %d are in flight, want 500", most)
	}
	testkit.Check(t, sub.Close())
	if n := testkit.Await(t, "the end of the batches", handled); n != 10 {
		t.Errorf("%d records were handled, want 10", n)
	}
	testkit.WantCommitted(t, group, topic, 0, 10)
}

// Nobody takes the batch: Close does not wait for that, and the next owner has its records, as if they had not been delivered.
func TestDrainLeavesABatchThatNobodyTakes(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(10)...)
	sub := testkit.NewSubscriber(t, testkit.Config(group), testkit.NewLog(t))
	_, err := sub.Batches(ackpolicy.BatchConfig{Wait: ackpolicy.NoWait}).Subscribe(context.Background(), topic)
	testkit.Check(t, err)
	testkit.Eventually(t, "the batch is offered", func() bool {
		state := sub.State()
		return len(state.Subscriptions) == 1 && len(state.Subscriptions[0].Partitions) == 1 && state.Subscriptions[0].Partitions[0].InFlight > 0
	})
	began := time.Now()
	testkit.Check(t, sub.Close())
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Close took %v", took)
	}
	s, c := consume(t, testkit.Config(group), untilFull(10), topic, succeed, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 10)
	s.Stop()
	for _, d := range c.get()[0] {
		if d.Attempt() != 1 {
			t.Errorf("offset %d: attempt %d, want 1", d.Offset(), d.Attempt())
		}
	}
}

// A handler that does not return is stopped at the end of the drain: its context ends, nothing it returns counts, and
// its records are left to the next owner.
func TestDrainStopsAHandler(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(10)...)
	cfg := testkit.Config(group, testkit.DrainTimeout(200*time.Millisecond))
	cfg.MaxDeliveries, cfg.DeadLetter = 1, &testkit.Flaky{}
	begun, ended := make(chan struct{}), make(chan error, 1)
	s, c := consume(t, cfg, untilFull(10), topic, func(ctx context.Context, messages []*message.Message, ds []*ackpolicy.Delivery) error {
		close(begun)
		<-ctx.Done()
		ended <- messages[3].Context().Err()
		return errors.New("the database says: canceled")
	}, ackpolicy.NackOnError.Middleware)
	testkit.Await(t, "the handler", begun)
	s.Stop()
	if err := testkit.Await(t, "its end", ended); !errors.Is(err, ackpolicy.ErrClosing) {
		t.Errorf("the context of a message: %v", err)
	}
	if n := len(c.get()); n != 1 {
		t.Errorf("%d calls, want 1: what was stopped is not split", n)
	}
	testkit.WantCommitted(t, group, topic, 0, 0)
	if n := cfg.DeadLetter.(*testkit.Flaky).Sent.Load(); n != 0 {
		t.Errorf("%d letters", n)
	}
}

// One of the partitions is revoked while a handler has a batch of both: its records are left to the next owner once the
// drain is over, and the others are settled as the handler says.
func TestRevocationOfAPart(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.FilledTopic(t, 2, 5)
	cooperative := testkit.Protocols()["cooperative"]
	begun, release := make(chan struct{}), make(chan struct{})
	first, c := consume(t, testkit.Config(group, cooperative, testkit.DrainTimeout(300*time.Millisecond)), untilFull(10), topic,
		func(ctx context.Context, _ []*message.Message, ds []*ackpolicy.Delivery) error {
			close(begun)
			return testkit.Until(ctx, release)
		}, ackpolicy.NackOnError.Middleware)
	testkit.Await(t, "the batch of both", begun)
	second, c2 := consume(t, testkit.Config(group, cooperative), ackpolicy.BatchConfig{}, topic, succeed, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "the second member handles one partition", func() bool { return len(c2.count()) == 5 })
	close(release)
	var kept int32
	for id := range c2.count() {
		kept = 1 - id.Partition
	}
	testkit.WaitCommitted(t, group, topic, kept, 5)
	testkit.WaitCommitted(t, group, topic, 1-kept, 5)
	first.Stop()
	second.Stop()
	for _, d := range c.get()[0] {
		want := ackpolicy.Acked
		if d.Partition() != kept {
			want = ackpolicy.Revoked
		}
		if d.Status() != want {
			t.Errorf("%d/%d: %v, want %v", d.Partition(), d.Offset(), d.Status(), want)
		}
	}
}

// Application code that does not return while a batch is prepared: Close leaves it behind, and names it.
func TestDrainNamesWhatHangs(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	hangs := hangingUnmarshaler{met: make(chan struct{}), free: make(chan struct{})}
	cfg := testkit.Config(group, testkit.DrainTimeout(300*time.Millisecond))
	cfg.Kafka.Unmarshaler = hangs
	s, _ := consume(t, cfg, untilFull(3), topic, succeed, ackpolicy.NackOnError.Middleware)
	defer close(hangs.free)
	testkit.Await(t, "the Unmarshaler", hangs.met)
	began := time.Now()
	s.Stop()
	if took := time.Since(began); took > 5300*time.Millisecond {
		t.Errorf("Close took %v", took)
	}
	if len(testkit.Containing(s.Log.At("error"), "Partition released", "Unmarshaler", "kafka_partition_offset=1")) == 0 {
		t.Errorf("no error line names it: %v", s.Log.At("error"))
	}
}

// hangingUnmarshaler does not return for the record with the value "1".
type hangingUnmarshaler struct{ met, free chan struct{} }

func (u hangingUnmarshaler) Unmarshal(r *sarama.ConsumerMessage) (*message.Message, error) {
	if string(r.Value) == "1" {
		close(u.met)
		<-u.free
	}
	return kafka.DefaultMarshaler{}.Unmarshal(r)
}
