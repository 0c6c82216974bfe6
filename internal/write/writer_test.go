package write

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

func writer(t *testing.T, b *brokertest.Broker, settings ...string) (*Writer, string) {
	t.Helper()
	topic := brokertest.Topic(t)
	if err := brokertest.CreateTopic(b.Addrs(), topic, 1, settings...); err != nil {
		t.Fatal(err)
	}
	config := sarama.NewConfig()
	config.Producer.Retry.Backoff = time.Millisecond
	config.Metadata.Retry.Backoff = time.Millisecond
	client, err := sarama.NewClient(b.Addrs(), config)
	if err != nil {
		t.Fatal(err)
	}
	w, err := New(client, topic)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Close()
		_ = client.Close()
	})
	return w, topic
}

func wantEnd(t *testing.T, b *brokertest.Broker, topic string, want int64) {
	t.Helper()
	if end, err := brokertest.EndOffset(b.Addrs(), topic, 0); err != nil || end != want {
		t.Errorf("%d records are stored (%v), want %d", end, err, want)
	}
}

// A broker that has just started has no producer ids to give for a moment.
func TestNoProducerIDYet(t *testing.T) {
	b := brokertest.NewFake(t)
	loading := b.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.CoordinatorLoadInProgress, Count: 3})
	w, topic := writer(t, b)
	if err := w.Write(t.Context(), Record{ID: 1}); err != nil || loading.Hits() != 3 {
		t.Fatalf("%v, after %d refusals", err, loading.Hits())
	}
	wantEnd(t, b, topic, 1)
}

// A broker refuses batches; those in it that are not at fault are stored.
func TestRefusedRecordsAmongOthers(t *testing.T) {
	for name, limit := range map[string]int{"limit unknown": 0, "limit known": 20_000} {
		t.Run(name, func(t *testing.T) {
			const records = 1000
			b := brokertest.New(t)
			w, topic := writer(t, b, "max.message.bytes=20000")
			w.SetLimit(limit)
			var stored, refused atomic.Int32
			var all sync.WaitGroup
			for i := range records {
				r := Record{ID: i, Timestamp: time.Now(), Value: fmt.Append(nil, i)}
				if i%20 == 7 {
					r.Value = noise(50_000)
				}
				if i%20 == 8 { // and one that is small enough once it is compressed
					r.Value = bytes.Repeat([]byte("text "), 10_000)
				}
				all.Go(func() {
					err := w.Write(t.Context(), r)
					var no *Refused
					switch {
					case err == nil:
						stored.Add(1)
					case errors.As(err, &no) && errors.Is(err, sarama.ErrMessageSizeTooLarge):
						refused.Add(1)
					default:
						t.Error(err)
					}
				})
			}
			all.Wait()
			if stored.Load() != records*19/20 || refused.Load() != records/20 {
				t.Errorf("%d stored, %d refused", stored.Load(), refused.Load())
			}
			wantEnd(t, b, topic, records*19/20)
		})
	}
}

// noise cannot be compressed.
func noise(n int) []byte {
	b := make([]byte, n)
	x := uint32(2463534242)
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

// A record whose response was lost is stored once, however often it is written.
func TestLostResponses(t *testing.T) {
	b := brokertest.NewFake(t)
	w, topic := writer(t, b)
	lost := b.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 2 * attempts})
	defer lost.Remove()
	failures := 0
	for w.Write(t.Context(), Record{ID: 1, Value: []byte("a")}) != nil {
		failures++
	}
	if failures != 2 {
		t.Errorf("%d failures", failures)
	}
	if err := w.Write(t.Context(), Record{ID: 2, Value: []byte("b")}); err != nil {
		t.Error(err)
	}
	wantEnd(t, b, topic, 2)
}

// One that came along in a batch without a response is stored with it, and its writer
// learns of that when it asks again.
func TestLostResponseOfABatch(t *testing.T) {
	b := brokertest.NewFake(t)
	w, topic := writer(t, b)
	lost := b.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: -1})
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			if err := w.Write(t.Context(), Record{ID: i, Value: []byte("x")}); !errors.Is(err, sarama.ErrRequestTimedOut) {
				t.Errorf("record %d: %v", i, err)
			}
		})
	}
	all.Wait()
	lost.Remove()
	for i := range 10 {
		if err := w.Write(t.Context(), Record{ID: i, Value: []byte("x")}); err != nil {
			t.Errorf("record %d, again: %v", i, err)
		}
	}
	wantEnd(t, b, topic, 10)
}

// A record that has no timestamp is stored without one, amid others.
func TestNoTimestamp(t *testing.T) {
	const records = 200
	b := brokertest.New(t)
	w, topic := writer(t, b)
	stamp := time.UnixMilli(time.Now().UnixMilli())
	at := func(i int) time.Time {
		if i%2 == 0 {
			return time.Time{}
		}
		return stamp.Add(-time.Duration(i) * time.Second)
	}
	var all sync.WaitGroup
	for i := range records {
		all.Go(func() {
			if err := w.Write(t.Context(), Record{ID: i, Timestamp: at(i), Value: fmt.Append(nil, i)}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	consumer, err := sarama.NewConsumer(b.Addrs(), sarama.NewConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	pc, err := consumer.ConsumePartition(topic, 0, sarama.OffsetOldest)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	for range records {
		m := <-pc.Messages()
		i, err := strconv.Atoi(string(m.Value))
		if err != nil || !m.Timestamp.Equal(at(i)) {
			t.Errorf("record %d: timestamp %v, want %v", i, m.Timestamp, at(i))
		}
	}
}

// A broker that knows nothing of the producer, since the topic was created again, takes the record after all.
func TestForgottenProducer(t *testing.T) {
	b := brokertest.New(t)
	w, topic := writer(t, b)
	for i := range 3 {
		if err := w.Write(t.Context(), Record{ID: i}); err != nil {
			t.Fatal(err)
		}
	}
	admin, err := sarama.NewClusterAdmin(b.Addrs(), sarama.NewConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if err := admin.DeleteTopic(topic); err != nil {
		t.Fatal(err)
	}
	for admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: -1}, false) != nil {
		if t.Context().Err() != nil {
			t.Fatal("the topic cannot be created again")
		}
	}
	for n := 0; w.Write(t.Context(), Record{ID: "again"}) != nil; n++ {
		if n == 100 {
			t.Fatal("the record is not stored")
		}
	}
	wantEnd(t, b, topic, 1)
}

func TestWriteEnds(t *testing.T) {
	b := brokertest.NewFake(t)
	w, _ := writer(t, b)
	release := make(chan struct{})
	defer close(release)
	b.Kfake().ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.Kfake().SleepControl(func() { <-release })
		return nil, nil, false
	})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := w.Write(ctx, Record{ID: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("with its context: %v", err)
	}
	time.AfterFunc(10*time.Millisecond, w.Close)
	if err := w.Write(t.Context(), Record{ID: 2}); !errors.Is(err, ErrClosed) {
		t.Errorf("with the writer: %v", err)
	}
	if err := w.Write(t.Context(), Record{ID: 3}); !errors.Is(err, ErrClosed) {
		t.Errorf("after it: %v", err)
	}
}
