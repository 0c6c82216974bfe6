package semantics_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// When AckSync returns nil, the broker stores the record as settled: here by an offset, for nothing before it is open.
// Until its handler has returned, no other record of its lane starts.
func TestAckSync(t *testing.T) {
	t.Parallel()
	const records = 20
	for _, o := range []ackpolicy.Ordering{ackpolicy.OrderByPartition, ackpolicy.OrderByKey} {
		t.Run(fmt.Sprint(o), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Keyed(slices.Repeat([]string{"a"}, records)...)...)
			var running atomic.Int32
			s := testkit.Consume(t, testkit.Config(group, testkit.CommitOnDemand, testkit.Ordering(o, 0)), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if n := running.Add(1); n > 1 {
					t.Errorf("%s started beside %d others of its lane", testkit.Name(d), n-1)
				}
				defer running.Add(-1)
				if err := d.AckSync(msg.Context()); err != nil {
					t.Errorf("%s: %v", testkit.Name(d), err)
				}
				stored, err := brokertest.Committed(testkit.Shared.Addrs(), group, topic, 0)
				if err != nil || stored != d.Offset()+1 {
					t.Errorf("%s: stored %d, %v", testkit.Name(d), stored, err)
				}
				if err := d.AckSync(msg.Context()); err != nil {
					t.Errorf("%s, again: %v", testkit.Name(d), err)
				}
				return nil
			}, ackpolicy.Manual.Middleware)
			s.Wait(t, records)
			s.Stop()
			testkit.WantCommitted(t, group, topic, 0, records)
		})
	}
}

// AckSync on what is settled otherwise says so, and settles nothing.
func TestAckSyncOfWhatIsSettledOtherwise(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	s := testkit.Consume(t, testkit.Config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		want := ackpolicy.Nacked
		switch testkit.Name(d) {
		case "0#1":
			d.Nack()
		case "1#1":
			want = ackpolicy.Rejected
			d.Reject(testkit.ErrBoom)
		default:
			return ackpolicy.ErrAck
		}
		err := d.AckSync(msg.Context())
		if err == nil || !strings.Contains(err.Error(), strings.ToLower(want.String())) || d.Status() != want {
			t.Errorf("AckSync of a delivery that is %v: %v, then %v", want, err, d.Status())
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	s.Wait(t, 3)
	s.Stop()
	s.Want(t, "0#1", "0#2", "1#1")
	testkit.WantCommitted(t, group, topic, 0, 2)
}

// An older record that is pending delays nothing: the ack is stored as a mark.
func TestAckSyncBehindAPendingRecord(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(2)...)
	s := testkit.Consume(t, testkit.Config(group, testkit.CommitOnDemand), topic, testkit.Succeed,
		ackpolicy.Manual.Middleware)
	second, first := s.Wait(t, 2), s.All()[0]
	for range 2 { // the second time it is stored already
		testkit.Check(t, second.AckSync(context.Background()))
	}
	testkit.WantCommitted(t, group, topic, 0, 0)
	testkit.Check(t, first.AckSync(context.Background()))
	testkit.WantCommitted(t, group, topic, 0, 2)
	s.Stop()
}

// A delivery that closing left behind.
func TestAckSyncAfterClosing(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(2)...)
	waiting := make(chan error, 1)
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t), at, testkit.DrainTimeout(100*time.Millisecond)), topic,
		func(_ *message.Message, d *ackpolicy.Delivery) error {
			if d.Offset() == 1 {
				broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.CoordinatorLoadInProgress, Count: 1000})
				go func() { waiting <- d.AckSync(context.Background()) }()
			}
			return nil
		}, ackpolicy.Manual.Middleware)
	second := s.Wait(t, 2)
	testkit.Eventually(t, "the ack", func() bool { return second.Status() == ackpolicy.Acked })
	s.Stop()
	if err := testkit.Await(t, "the AckSync that waited", waiting); !errors.Is(err, ackpolicy.ErrClosing) {
		t.Errorf("AckSync that waited: %v", err)
	}
	first := s.All()[0]
	if err := first.AckSync(context.Background()); !errors.Is(err, ackpolicy.ErrClosing) {
		t.Errorf("AckSync after closing: %v", err)
	}
	if first.Ack() || first.Nack() || first.Reject(nil) || first.AckCumulative() || first.Status() != ackpolicy.Revoked {
		t.Errorf("settled after closing: %v", first.Status())
	}
}

// An AckSync whose context ends leaves its record acked.
func TestAckSyncWhoseContextEnds(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(1)...)
	testkit.RefuseCommits(broker, 1000)
	ended := make(chan error, 1)
	s := testkit.Consume(t, testkit.Config(brokertest.Group(t), at, testkit.DrainTimeout(time.Second)), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		ctx, cancel := context.WithTimeout(msg.Context(), 50*time.Millisecond)
		defer cancel()
		ended <- d.AckSync(ctx)
		if d.Status() != ackpolicy.Acked {
			t.Errorf("%s is %s", testkit.Name(d), d.Status())
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	if err := testkit.Await(t, "AckSync", ended); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	s.Stop()
}

// A revoked record is never reported as stored, and a stored one not as lost.
func TestAckSyncTellsTheTruth(t *testing.T) {
	t.Parallel()
	for range 10 {
		topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
		sub := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t), testkit.DrainTimeout(time.Millisecond)), nil)
		out, err := sub.Subscribe(context.Background(), topic)
		testkit.Check(t, err)
		d, _ := ackpolicy.FromMessage(testkit.Await(t, "a message", out))
		go sub.Close()
		for d.Status() == ackpolicy.Pending {
		}
		if err := d.AckSync(context.Background()); err == nil {
			t.Fatal("AckSync of a revoked record returned nil")
		}
		testkit.Check(t, sub.Close())
	}
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	s := testkit.Consume(t, testkit.Config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		return d.AckSync(msg.Context())
	}, ackpolicy.Manual.Middleware)
	d := s.Wait(t, 1)
	testkit.WaitCommitted(t, group, topic, 0, 1)
	s.Stop()
	testkit.Check(t, d.AckSync(context.Background()))
}
