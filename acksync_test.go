package ackpolicy_test

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
)

// noInterval leaves all commits to those who wait for one, and to the end.
func noInterval(c *ackpolicy.SubscriberConfig) { c.CommitInterval = time.Hour }

// When AckSync returns nil, the broker stores the record as settled: here by an offset, for nothing before it is open.
// Until its handler has returned, no other record of its lane starts.
func TestAckSync(t *testing.T) {
	t.Parallel()
	const records = 20
	for _, o := range []ackpolicy.Ordering{ackpolicy.OrderByPartition, ackpolicy.OrderByKey} {
		t.Run(fmt.Sprint(o), func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), newTopic(t, 1, keyed(slices.Repeat([]string{"a"}, records)...)...)
			var running atomic.Int32
			s := consume(t, config(group, noInterval, ordering(o, 0)), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if n := running.Add(1); n > 1 {
					t.Errorf("%s started beside %d others of its lane", name(d), n-1)
				}
				defer running.Add(-1)
				if err := d.AckSync(msg.Context()); err != nil {
					t.Errorf("%s: %v", name(d), err)
				}
				stored, err := brokertest.Committed(shared.Addrs(), group, topic, 0)
				if err != nil || stored != d.Offset()+1 {
					t.Errorf("%s: stored %d, %v", name(d), stored, err)
				}
				if err := d.AckSync(msg.Context()); err != nil {
					t.Errorf("%s, again: %v", name(d), err)
				}
				return nil
			}, ackpolicy.Manual.Middleware)
			s.journal.wait(t, records)
			s.stop()
			wantCommitted(t, group, topic, 0, records)
		})
	}
}

// AckSync on what is settled otherwise says so, and settles nothing.
func TestAckSyncOfWhatIsSettledOtherwise(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	s := consume(t, config(group), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		want := ackpolicy.Nacked
		switch name(d) {
		case "0#1":
			d.Nack()
		case "1#1":
			want = ackpolicy.Rejected
			d.Reject(errBoom)
		default:
			return ackpolicy.ErrAck
		}
		err := d.AckSync(msg.Context())
		if err == nil || !strings.Contains(err.Error(), strings.ToLower(want.String())) || d.Status() != want {
			t.Errorf("AckSync of a delivery that is %v: %v, then %v", want, err, d.Status())
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	s.journal.wait(t, 3)
	s.stop()
	s.journal.want(t, "0#1", "0#2", "1#1")
	wantCommitted(t, group, topic, 0, 2)
}

// An older record that is pending holds nobody up: the ack is stored as a mark.
func TestAckSyncBehindAPendingRecord(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), newTopic(t, 1, numbered(2)...)
	s := consume(t, config(group, noInterval), topic, func(*message.Message, *ackpolicy.Delivery) error { return nil },
		ackpolicy.Manual.Middleware)
	second, first := s.journal.wait(t, 2), s.journal.all()[0]
	for range 2 { // the second time it is stored already
		check(t, second.AckSync(context.Background()))
	}
	wantCommitted(t, group, topic, 0, 0)
	check(t, first.AckSync(context.Background()))
	wantCommitted(t, group, topic, 0, 2)
	s.stop()
}

// A delivery that closing left behind.
func TestAckSyncAfterClosing(t *testing.T) {
	t.Parallel()
	broker := brokertest.NewFake(t)
	topic, at := fakeTopic(t, broker, numbered(2)...)
	waiting := make(chan error, 1)
	s := consume(t, config(brokertest.Group(t), at, drainTimeout(100*time.Millisecond)), topic,
		func(_ *message.Message, d *ackpolicy.Delivery) error {
			if d.Offset() == 1 {
				broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.CoordinatorLoadInProgress, Count: 1000})
				go func() { waiting <- d.AckSync(context.Background()) }()
			}
			return nil
		}, ackpolicy.Manual.Middleware)
	second := s.journal.wait(t, 2)
	eventually(t, "the ack", func() bool { return second.Status() == ackpolicy.Acked })
	s.stop()
	if err := await(t, "the AckSync that waited", waiting); !errors.Is(err, ackpolicy.ErrClosing) {
		t.Errorf("AckSync that waited: %v", err)
	}
	first := s.journal.all()[0]
	if err := first.AckSync(context.Background()); !errors.Is(err, ackpolicy.ErrClosing) {
		t.Errorf("AckSync after closing: %v", err)
	}
	if first.Ack() || first.Nack() || first.Reject(nil) || first.AckCumulative() || first.Status() != ackpolicy.Revoked {
		t.Errorf("settled after closing: %v", first.Status())
	}
}

// AckCumulative takes with it what is pending or waits after a nack, and leaves what runs.
func TestAckCumulative(t *testing.T) {
	t.Parallel()
	const running, pending, parked, last, other = 0, 1, 2, 4, 1
	group, topic := brokertest.Group(t), newTopic(t, 2, numbered(last+1)...)
	release := make(chan struct{})
	s := consume(t, config(group, ordering(ackpolicy.Unordered, 8)), topic,
		func(msg *message.Message, d *ackpolicy.Delivery) error {
			switch {
			case d.Partition() == other:
				return d.AckSync(msg.Context())
			case d.Offset() == running:
				if err := until(msg.Context(), release); err != nil {
					return err
				}
				return ackpolicy.ErrAck
			case d.Offset() == parked:
				return ackpolicy.NackAfter(time.Hour)
			}
			return nil
		}, ackpolicy.Manual.Middleware)
	s.journal.wait(t, last+1)
	byOffset := map[int64]*ackpolicy.Delivery{}
	for _, d := range s.journal.all() {
		byOffset[d.Offset()] = d
	}
	eventually(t, "the nack", func() bool { return byOffset[parked].Status() == ackpolicy.Nacked })

	// A handler that has just returned may not have finished yet: then its record keeps its own verdict, which is none.
	eventually(t, "all that was pending is acked", func() bool {
		return byOffset[last].AckCumulative() && byOffset[pending].Status() == ackpolicy.Acked &&
			byOffset[last-1].Status() == ackpolicy.Acked
	})
	if status := byOffset[running].Status(); status != ackpolicy.Pending {
		t.Errorf("the running one: %v", status)
	}
	// A commit of the other partition after that would have taken this one along.
	produce(t, topic, other, numbered(1)...)
	waitCommitted(t, group, topic, other, 1)
	wantCommitted(t, group, topic, 0, 0)

	close(release)
	waitCommitted(t, group, topic, 0, last+1)
	s.stop()
	if n := len(s.journal.all()); n != last+2 {
		t.Errorf("%d deliveries, want %d: %v", n, last+2, s.journal.names())
	}
}
