package letters

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// service is a consumer that rejects while it is broken, and counts what it handles.
type service struct {
	router  *message.Router
	ended   chan struct{}
	broken  atomic.Bool
	handled chan string
}

func (b *bed) service(profile func(ackpolicy.Letter) []sarama.RecordHeader) *service {
	b.t.Helper()
	cfg := kafka.DefaultSaramaSubscriberConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	cfg.Consumer.MaxWaitTime = 100 * time.Millisecond
	sub, err := ackpolicy.NewSubscriber(ackpolicy.SubscriberConfig{
		Kafka:         kafka.SubscriberConfig{Brokers: b.broker.Addrs(), ConsumerGroup: brokertest.Group(b.t), OverwriteSaramaConfig: cfg},
		DeadLetter:    ackpolicy.DeadLetterTopic{Headers: profile},
		MaxDeliveries: 2, CommitInterval: 50 * time.Millisecond,
	}, watermill.NopLogger{})
	testkit.Check(b.t, err)
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	testkit.Check(b.t, err)
	s := &service{router: router, ended: make(chan struct{}), handled: make(chan string, 1000)}
	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	router.AddConsumerHandler("charge", b.origin, sub, func(msg *message.Message) error {
		if s.broken.Load() && strings.HasPrefix(string(msg.Payload), "bad") {
			return errors.New("cannot charge: the bank is down")
		}
		s.handled <- string(msg.Payload)
		return nil
	})
	go func() {
		defer close(s.ended)
		_ = router.Run(b.t.Context())
	}()
	b.t.Cleanup(s.stop)
	return s
}

func (s *service) stop() {
	_ = s.router.Close()
	<-s.ended
}

func (s *service) want(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for range want {
		select {
		case v := <-s.handled:
			got = append(got, v)
		case <-time.After(testkit.Patience):
			t.Fatalf("handled %v, want %v", got, want)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("handled %v, want %v", got, want)
	}
}

func (b *bed) waitLetters(partition int32, n int64) {
	b.t.Helper()
	testkit.Eventually(b.t, "letters", func() bool {
		end, err := brokertest.EndOffset(b.broker.Addrs(), b.dlq, partition)
		return err == nil && end >= n
	})
}

// A record is rejected, its letter looked at and sent back, and it is handled, once.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for _, profile := range []struct {
		name    string
		headers func(ackpolicy.Letter) []sarama.RecordHeader
	}{{"ackpolicy", nil}, {"watermill", ackpolicy.HeadersWatermill}, {"spring", ackpolicy.HeadersSpring}, {"kafka", ackpolicy.HeadersKafka}} {
		t.Run(profile.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, 2)
			s := b.service(profile.headers)
			s.broken.Store(true)
			b.put(b.origin, 1, brokertest.KeyValue("a", "bad 1"), brokertest.KeyValue("b", "good"), brokertest.KeyValue("c", "bad 2"))
			s.want(t, "good")
			b.waitLetters(1, 2)
			s.broken.Store(false)
			b.want(exitDone, []string{"1:0 ", "1:1 ", "cannot charge: the bank is down", "2 letters"})
			b.want(exitDone, []string{"Sent 2 letters."}, "send")
			s.want(t, "bad 1", "bad 2")
			b.want(exitDone, []string{"is open:"}, "send")
			b.put(b.origin, 0, brokertest.Values("last")...)
			b.put(b.origin, 1, brokertest.Values("last")...)
			s.want(t, "last", "last")
			if len(s.handled) > 0 {
				t.Errorf("%d handled too often", len(s.handled))
			}
		})
	}
}

// A record that dies again keeps its first origin, counts on, and does not grow.
func TestDiesAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	s := b.service(nil)
	s.broken.Store(true)
	b.put(b.origin, 0, brokertest.Record{Value: []byte("bad"), Headers: []sarama.RecordHeader{header("own", "x")}})
	for round := range 3 {
		b.waitLetters(0, int64(round+1))
		if round < 2 {
			b.want(exitDone, []string{"Sent 1 letter."}, "send")
		}
	}
	all := b.read(b.dlq, 0, sarama.ReadCommitted)
	first, last := testkit.Headers(all[0]), testkit.Headers(all[2])
	if len(first) != len(last) || last[ackpolicy.HeaderRejections] != "3" || last[ackpolicy.HeaderAttempts] != "2" || last["own"] != "x" {
		t.Errorf("headers: first %v, last %v", first, last)
	}
	for _, key := range originHeaders[:4] {
		if first[key] != last[key] {
			t.Errorf("%s: first %q, last %q", key, first[key], last[key])
		}
	}
	// What came back in between had what it needs for that, and no more.
	back := testkit.Headers(b.read(b.origin, 0, sarama.ReadCommitted)[1])
	if len(back) != 1+len(originHeaders) || back[ackpolicy.HeaderRejections] != "1" || back[ackpolicy.HeaderOffset] != "0" {
		t.Errorf("headers of the record that came back: %v", back)
	}
	// Without them it starts again.
	b.want(exitDone, []string{"Sent 1 letter."}, "send", "--headers", "none")
	b.waitLetters(0, 4)
	fresh := testkit.Headers(b.read(b.dlq, 0, sarama.ReadCommitted)[3])
	if fresh[ackpolicy.HeaderRejections] != "1" || fresh[ackpolicy.HeaderOffset] == "0" {
		t.Errorf("headers of the one that starts again: %v", fresh)
	}
}

// What goes back is what was rejected, byte for byte, and in the same partition.
func TestByteForByte(t *testing.T) {
	t.Parallel()
	big := bytes.Repeat([]byte("0123456789abcdef"), 1_000_000/16)
	stamped := time.Now().Add(-3 * time.Hour).Truncate(time.Millisecond)
	records := []brokertest.Record{
		{Key: []byte("tombstone")},
		{Value: []byte("no key")},
		{Key: []byte{}, Value: []byte{}},
		{Key: []byte("\xff\x00"), Value: []byte("\xfe\x00\xff"), Headers: []sarama.RecordHeader{
			{Key: []byte("h"), Value: []byte("\xff")}, {Key: []byte("h")}, {Key: []byte("h"), Value: []byte{}}, {Key: []byte{}, Value: []byte("x")},
		}},
		{Key: []byte("big"), Value: big},
		{Key: []byte("big too"), Value: big},
		{},
	}
	for i := range records {
		records[i].Timestamp = stamped
	}
	b := newBed(t, 3)
	b.put(b.origin, 2, records...)
	originals := b.read(b.origin, 2, sarama.ReadCommitted)
	for i, r := range records { // as DeadLetterTopic writes them
		letter := b.sample(ackpolicy.Letter{Partition: 2, Offset: int64(i), Timestamp: stamped})
		r.Headers = append(slices.Clone(r.Headers), append(ackpolicy.HeadersAckpolicy(letter), header(ackpolicy.HeaderRejections, "1"))...)
		b.put(b.dlq, 2, r)
	}
	for _, timestamp := range []string{timestampNow, timestampOriginal} {
		before := len(b.read(b.origin, 2, sarama.ReadCommitted))
		began := time.Now().Add(-time.Second)
		b.want(exitDone, []string{"Sent 7 letters."}, "send", "--headers", "none", "--timestamp", timestamp, "--group", "g-"+timestamp+b.dlq)
		got := b.read(b.origin, 2, sarama.ReadCommitted)[before:]
		if len(got) != len(originals) {
			t.Fatalf("%d came back of %d", len(got), len(originals))
		}
		for i, m := range got {
			want := originals[i]
			if !reflect.DeepEqual([][]byte{m.Key, m.Value}, [][]byte{want.Key, want.Value}) || !reflect.DeepEqual(m.Headers, want.Headers) {
				t.Errorf("record %d: %.50q: %.50q %q, want %.50q: %.50q %q", i, m.Key, m.Value, text2(m.Headers), want.Key, want.Value, text2(want.Headers))
			}
			if timestamp == timestampOriginal && !m.Timestamp.Equal(stamped) || timestamp == timestampNow && m.Timestamp.Before(began) {
				t.Errorf("record %d: -timestamp %s makes it %v", i, timestamp, m.Timestamp)
			}
		}
	}
}

func text2(headers []*sarama.RecordHeader) (all []string) {
	for _, h := range headers {
		all = append(all, fmt.Sprintf("%q=%#v", h.Key, h.Value))
	}
	return all
}

// A letter larger than a request holds goes, too, and so does one that is only as
// small as the broker wants once it is compressed.
func TestCompression(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	to := b.origin + ".small"
	testkit.Check(t, brokertest.CreateTopic(b.broker.Addrs(), to, 1, "max.message.bytes=100000"))
	b.letter(0, "k", strings.Repeat("x", 200_000), ackpolicy.Letter{})
	if b.broker.Real() { // kfake takes any size
		b.want(exitFailed, []string{"letter 0:0", "max.message.bytes", "--compression zstd", "0 of 1 letter sent"}, "send", "--to", to)
	}
	b.want(exitDone, []string{"Sent 1 letter."}, "send", "--to", to, "--compression", "zstd")
	if got := b.read(to, 0, sarama.ReadCommitted); len(got) != 1 || len(got[0].Value) != 200_000 {
		t.Errorf("%d records", len(got))
	}
}
