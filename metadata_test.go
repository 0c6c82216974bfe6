package ackpolicy_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// A subscription loads the whole cluster's metadata once, not once a connection: with
// thousands of topics each time is a second and a hundred megabytes.
func TestMetadataIsLoadedOnce(t *testing.T) {
	t.Parallel()
	for name, group := range map[string]string{"group": brokertest.Group(t), "no group": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t)
			topic, at := fakeTopic(t, broker, numbered(3)...)
			var whole atomic.Int32
			broker.Kfake().ControlKey(int16(kmsg.Metadata), func(request kmsg.Request) (kmsg.Response, error, bool) {
				broker.Kfake().KeepControl()
				if request.(*kmsg.MetadataRequest).Topics == nil {
					whole.Add(1)
				}
				return nil, nil, false
			})
			s := consume(t, config(group, at), topic, func(*message.Message, *ackpolicy.Delivery) error { return nil },
				ackpolicy.NackOnError.Middleware)
			s.journal.wait(t, 3)
			s.stop()
			if n := whole.Load(); n != 1 {
				t.Errorf("the metadata of all topics were asked for %d times, want once", n)
			}
		})
	}
}

// What is known of other topics does not matter, but where the brokers are and who leads does: the
// connection that commits and reads again finds the next leader, and so does the fetch.
func TestLeaderMoves(t *testing.T) {
	t.Parallel()
	const records, brokers = 400, 3
	broker := brokertest.NewFake(t, kfake.NumBrokers(brokers))
	topic, at := fakeTopic(t, broker, sized(records, 10_000)...)
	cfg := config(brokertest.Group(t), ordering(ackpolicy.OrderByKey, 16), at)
	cfg.Kafka.Brokers = cfg.Kafka.Brokers[:1]
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Retry.Backoff = 100 * time.Millisecond
	cfg.MaxBufferedBytes = mebibyte // a quarter of the records
	s := consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() > 1 || d.Offset() >= records {
			return ackpolicy.ErrAck
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	s.journal.wait(t, records)
	pending := s.journal.all()
	for i, d := range pending {
		if i%(records/10) == 0 {
			check(t, broker.Kfake().MoveTopicPartition(topic, 0, int32(i/(records/10)%brokers)))
		}
		if !d.Nack() {
			t.Fatalf("%s is %v", name(d), d.Status())
		}
	}
	s.journal.wait(t, 2*records)
	check(t, brokertest.WaitCommitted(broker.Addrs(), cfg.Kafka.ConsumerGroup, topic, 0, records, patience))
	_, err := brokertest.Produce(broker.Addrs(), topic, 0, numbered(1)...)
	check(t, err)
	s.journal.wait(t, 2*records+1)
}
