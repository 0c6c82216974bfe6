package subscriber_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Without a group, what is written after Subscribe has returned comes, also from the newest offset on.
func TestNoGroupStartsAtSubscribe(t *testing.T) {
	t.Parallel()
	const rounds, partitions = 30, 3
	topic := testkit.FilledTopic(t, partitions, 2)
	for round := range rounds {
		sub := testkit.NewSubscriber(t, testkit.Config("", testkit.InitialOffset(sarama.OffsetNewest)), nil)
		out, err := sub.Subscribe(context.Background(), topic)
		testkit.Check(t, err)
		want := fmt.Sprint("round ", round)
		for p := range int32(partitions) {
			testkit.Produce(t, topic, p, brokertest.Values(want)...)
		}
		for range partitions {
			msg := testkit.Await(t, want, out)
			if string(msg.Payload) != want {
				t.Fatalf("%s: got %q", want, msg.Payload)
			}
			msg.Ack()
		}
		testkit.Check(t, sub.Close())
	}
}

// Partitions that are added to the topic are read without a group, too, from their beginning.
func TestNoGroupReadsAddedPartitions(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1)
	s := testkit.Consume(t, testkit.Config("", testkit.InitialOffset(sarama.OffsetNewest)), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	admin, err := sarama.NewClusterAdmin(testkit.Shared.Addrs(), sarama.NewConfig())
	testkit.Check(t, err)
	testkit.Check(t, admin.CreatePartitions(topic, 3, nil, false))
	testkit.Check(t, admin.Close())
	want := []string{"1/0", "1/1", "2/0", "2/1"}
	for p := int32(1); p < 3; p++ {
		testkit.Eventually(t, "the new partition", func() bool { _, err := brokertest.EndOffset(testkit.Shared.Addrs(), topic, p); return err == nil })
		testkit.Produce(t, topic, p, testkit.Numbered(2)...)
	}
	s.Wait(t, len(want))
	var got []string
	for _, d := range s.All() {
		got = append(got, fmt.Sprintf("%d/%d", d.Partition(), d.Offset()))
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("delivered %v, want %v", got, want)
	}
	if lines := testkit.Containing(s.Log.At("info"), "A partition was added"); len(lines) != 2 {
		t.Errorf("%d lines name the new partitions: %v", len(lines), lines)
	}
}

// One partition whose reader ends is opened again; the others continue.
func TestNoGroupOnePartitionEnds(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopicOf(t, broker, 2)
	for p := range int32(2) {
		_, err := brokertest.Produce(broker.Addrs(), topic, p, testkit.Numbered(3)...)
		testkit.Check(t, err)
	}
	release := make(chan struct{})
	cfg := testkit.Config("", at)
	cfg.Kafka.ReconnectRetrySleep = 100 * time.Millisecond
	s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if d.Partition() == 0 && d.Offset() == 2 {
			return testkit.Until(msg.Context(), release)
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 6)
	// As where retention removes what is to be read next. The position is asked for twice before it is opened again, and that fails first.
	ended := broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Partitions: []int32{1}, Err: kerr.OffsetOutOfRange})
	closed := broker.Kfake().Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: topic, Partitions: []int32{1}, Err: kerr.LeaderNotAvailable, Count: 4,
	})
	testkit.Eventually(t, "failures to open the partition again", func() bool { return ended.Hits() > 0 && closed.Hits() == 4 })
	_, err := brokertest.Produce(broker.Addrs(), topic, 1, testkit.Numbered(2)...)
	testkit.Check(t, err)
	s.Wait(t, 8)
	close(release)
	_, err = brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(1)...)
	testkit.Check(t, err)
	s.Wait(t, 9)
	s.Stop()
	seen := map[string]bool{}
	for _, d := range s.All() {
		at := fmt.Sprintf("%d/%d", d.Partition(), d.Offset())
		if seen[at] || d.Status() != ackpolicy.Acked {
			t.Errorf("%s came twice, or is %v", at, d.Status())
		}
		seen[at] = true
	}
}

// Subscribe returns the error of a partition whose position cannot be fixed, and nothing of the others is left.
func TestNoGroupSubscribeFails(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopicOf(t, broker, 5)
	broker.Kfake().Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: topic, Partitions: []int32{3}, Err: kerr.LeaderNotAvailable, Count: -1,
	})
	_, err := testkit.NewSubscriber(t, testkit.Config("", at), testkit.NewLog(t)).Subscribe(context.Background(), topic)
	if err == nil || !errors.Is(err, sarama.ErrLeaderNotAvailable) || !strings.Contains(err.Error(), "partition 3 of topic "+topic) {
		t.Error("the partition is not named:", err)
	}
}

// Close ends a Subscribe that waits for a broker's response.
func TestNoGroupCloseEndsSubscribe(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopicOf(t, broker, 3)
	asked := make(chan struct{})
	var once atomic.Bool
	broker.Kfake().ControlKey(int16(kmsg.ListOffsets), func(request kmsg.Request) (kmsg.Response, error, bool) {
		broker.Kfake().KeepControl()
		if request.(*kmsg.ListOffsetsRequest).Topics[0].Partitions[0].Partition == 2 && once.CompareAndSwap(false, true) {
			broker.Kfake().SleepControl(func() {
				close(asked)
				time.Sleep(testkit.Patience / 10) //nolint:forbidigo // the broker says nothing
			})
		}
		return nil, nil, false
	})
	sub := testkit.NewSubscriber(t, testkit.Config("", at), testkit.NewLog(t))
	subscribed := make(chan error, 1)
	go func() {
		_, err := sub.Subscribe(context.Background(), topic)
		subscribed <- err
	}()
	testkit.Await(t, "a question for the position", asked)
	began := time.Now()
	testkit.Check(t, sub.Close())
	if err := testkit.Await(t, "the end of Subscribe", subscribed); !errors.Is(err, ackpolicy.ErrClosing) {
		t.Error("Subscribe:", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("Close and Subscribe took %v", took)
	}
}

// A topic that does not exist is created where brokers do that, and is an error else; as with watermill-kafka's subscriber.
func TestNoGroupMissingTopic(t *testing.T) {
	t.Parallel()
	for _, create := range []bool{true, false} {
		broker := brokertest.NewFake(t)
		cfg := testkit.Config("", testkit.InitialOffset(sarama.OffsetNewest), func(c *ackpolicy.SubscriberConfig) { c.Kafka.Brokers = broker.Addrs() })
		cfg.Kafka.OverwriteSaramaConfig.Metadata.AllowAutoTopicCreation = create
		topic := brokertest.Topic(t)
		out, err := testkit.NewSubscriber(t, cfg, testkit.NewLog(t)).Subscribe(context.Background(), topic)
		if (err == nil) != create {
			t.Fatalf("created by the broker %v: Subscribe: %v", create, err)
		}
		if !create {
			if !errors.Is(err, sarama.ErrUnknownTopicOrPartition) || !strings.Contains(err.Error(), topic) {
				t.Error("the topic is not named:", err)
			}
			continue
		}
		_, err = brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(1)...)
		testkit.Check(t, err)
		testkit.Await(t, "the record", out).Ack()
	}
}

// Without a consumer group nothing can be committed; all else holds.
func TestNoConsumerGroup(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(4)...)
	s := testkit.Consume(t, testkit.Config(""), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		switch testkit.Name(d) {
		case "0#1":
			d.Ack()
		case "1#1":
			return ackpolicy.ErrReject
		case "2#1":
			return testkit.ErrBoom
		case "3#1":
			if err := d.AckSync(msg.Context()); !errors.Is(err, ackpolicy.ErrNoConsumerGroup) {
				t.Errorf("AckSync: %v", err)
			}
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 5)
	s.Stop()
	s.Want(t, "0#1", "1#1", "2#1", "2#2", "3#1")
	var statuses []ackpolicy.Status
	for _, d := range s.All() {
		statuses = append(statuses, d.Status())
	}
	want := []ackpolicy.Status{ackpolicy.Acked, ackpolicy.Rejected, ackpolicy.Nacked, ackpolicy.Acked, ackpolicy.Acked}
	if !slices.Equal(statuses, want) {
		t.Errorf("statuses: got %v, want %v", statuses, want)
	}
}
