package reread

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/dial"
)

func reader(t *testing.T, b *brokertest.Broker, values ...string) *Reader {
	topic := brokertest.Topic(t)
	if err := brokertest.CreateTopic(b.Addrs(), topic, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := brokertest.Produce(b.Addrs(), topic, 0, brokertest.Values(values...)...); err != nil {
		t.Fatal(err)
	}
	client, err := sarama.NewClient(b.Addrs(), sarama.NewConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return New(client, topic, 0, nil)
}

func TestRead(t *testing.T) {
	b := brokertest.New(t)
	r := reader(t, b, "a", "b", "c")
	for _, offset := range []int64{1, 2, 0, 1} {
		m, err := r.Read(nil, offset)
		if err != nil || string(m.Value) != string(rune('a'+offset)) || m.Offset != offset {
			t.Fatalf("offset %d: %+v, %v", offset, m, err)
		}
	}
}

// Handlers at once ask out of order: what a fetch brought is not fetched again for that.
func TestReadsOutOfOrderFetchOnce(t *testing.T) {
	const records, size, atOnce = 1000, 10_000, 64
	b := brokertest.NewFake(t)
	r := reader(t, b, slices.Repeat([]string{strings.Repeat(".", size)}, records)...)
	var fetches atomic.Int32
	b.Kfake().ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.Kfake().KeepControl()
		fetches.Add(1)
		return nil, nil, false
	})
	random := rand.New(rand.NewPCG(1, 1))
	for first := 0; first < records; first += atOnce {
		for _, i := range random.Perm(min(atOnce, records-first)) {
			if m, err := r.Read(nil, int64(first+i)); err != nil || m.Offset != int64(first+i) {
				t.Fatalf("offset %d: %+v, %v", first+i, m, err)
			}
		}
	}
	// In order it would be 10, of 1 MiB each; with the last one only it was 374.
	if n := fetches.Load(); n > 150 {
		t.Errorf("%d fetches", n)
	}
	if len(r.ahead) > kept {
		t.Errorf("%d fetches are kept, want at most %d", len(r.ahead), kept)
	}
}

// What retention removed is gone; what lies beyond the log's end is not: a new
// leader may not have it yet.
func TestGone(t *testing.T) {
	b := brokertest.New(t)
	r := reader(t, b, "a", "b", "c")
	if err := brokertest.DeleteRecords(b.Addrs(), r.topic, 0, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(nil, 1); !errors.Is(err, ErrGone) {
		t.Errorf("a record that was removed: %v", err)
	}
	if _, err := r.Read(nil, 0); !errors.Is(err, ErrGone) {
		t.Errorf("one before it: %v", err)
	}
	if m, err := r.Read(nil, 2); err != nil || string(m.Value) != "c" {
		t.Errorf("the one behind it: %v, %v", m, err)
	}
	if _, err := r.Read(nil, 7); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("beyond the end: %v", err)
	}
}

// A leader that was just elected knows for a moment of a high watermark below
// what its predecessor gave out, and responds with nothing.
func TestHighWatermarkBehind(t *testing.T) {
	b := brokertest.NewFake(t)
	r := reader(t, b, "a", "b", "c")
	b.Kfake().ControlKey(1, func(req kmsg.Request) (kmsg.Response, error, bool) {
		fetch := req.(*kmsg.FetchRequest)
		resp := fetch.ResponseKind().(*kmsg.FetchResponse)
		for _, topic := range fetch.Topics {
			rt := kmsg.NewFetchResponseTopic()
			rt.Topic, rt.TopicID = topic.Topic, topic.TopicID
			rp := kmsg.NewFetchResponseTopicPartition()
			rp.HighWatermark, rp.RecordBatches = 1, []byte{}
			rt.Partitions = append(rt.Partitions, rp)
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	if _, err := r.Read(nil, 1); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("the record is there, and the response is %v", err)
	}
	if m, err := r.Read(nil, 1); err != nil || string(m.Value) != "b" {
		t.Errorf("a moment later: %v, %v", m, err)
	}
}

// While another read is under way a read waits, and can be stopped.
func TestReadStops(t *testing.T) {
	r := reader(t, brokertest.New(t), slices.Repeat([]string{"x"}, 3)...)
	r.turn <- struct{}{}
	stop := make(chan struct{})
	close(stop)
	if _, err := r.Read(stop, 0); !errors.Is(err, ErrStopped) {
		t.Errorf("got %v", err)
	}
}

// What was read ahead is dropped once nobody has read for a while.
func TestRest(t *testing.T) {
	r := reader(t, brokertest.New(t), "a", "b", "c")
	if _, err := r.Read(nil, 0); err != nil || len(r.ahead) == 0 {
		t.Fatalf("%d fetches kept, %v", len(r.ahead), err)
	}
	r.Rest()
	if len(r.ahead) == 0 {
		t.Error("dropped at once")
	}
	r.Rest()
	if len(r.ahead) > 0 {
		t.Error("kept")
	}
	if m, err := r.Read(nil, 1); err != nil || string(m.Value) != "b" {
		t.Errorf("read again: %v, %v", m, err)
	}
}

// Of each partition a probe says whether it can be fetched.
func TestProbe(t *testing.T) {
	b := brokertest.NewFake(t)
	r := reader(t, b, "a", "b", "c")
	at := func(offset int64, leader int32) map[int32]Position {
		return map[int32]Position{0: {Offset: offset, Leader: leader, Epoch: -1}}
	}
	leader, err := r.client.Leader(r.topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, position := range map[string]map[int32]Position{
		"a record": at(0, leader.ID()), "the end": at(3, leader.ID()), "beyond it": at(7, leader.ID()),
	} {
		if errs := Probe(r.client, r.topic, position); len(errs) != 1 || errs[0] != nil {
			t.Errorf("%s: %v", name, errs)
		}
	}
	if errs := Probe(r.client, r.topic, at(0, 99)); errs[0] == nil {
		t.Error("a leader that nobody knows: no error")
	}
	fault := b.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.LeaderNotAvailable, Count: -1})
	if errs := Probe(r.client, r.topic, at(0, leader.ID())); !errors.Is(errs[0], sarama.ErrLeaderNotAvailable) {
		t.Errorf("no leader: %v", errs)
	}
	fault.Remove()
	b.Close()
	if errs := Probe(r.client, r.topic, at(0, leader.ID())); errs[0] == nil {
		t.Error("without the broker: no error")
	}
}

// A request to a leader that is silent ends soon after whoever asks has to stop.
func TestSilentLeader(t *testing.T) {
	for name, ask := range map[string]func(r *Reader, stop <-chan struct{}) error{
		"read": func(r *Reader, stop <-chan struct{}) error { _, err := r.Read(stop, 0); return err },
		"tail": func(r *Reader, stop <-chan struct{}) error { _, err := r.Tail(stop, 0); return err },
	} {
		t.Run(name, func(t *testing.T) {
			b := brokertest.NewFake(t)
			r := reader(t, b, "a")
			config := sarama.NewConfig()
			dialer := dial.New(config)
			client, err := sarama.NewClient(b.Addrs(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = client.Close() })
			r = New(client, r.topic, 0, func(stop <-chan struct{}) func() { return dial.AbortLate(stop, dialer.Abort) })
			asked, release := make(chan struct{}, 10), make(chan struct{})
			for _, key := range []kmsg.Key{kmsg.Fetch, kmsg.ListOffsets} {
				b.Kfake().ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
					asked <- struct{}{}
					b.Kfake().SleepControl(func() { <-release })
					return nil, nil, false
				})
			}
			stop, ended := make(chan struct{}), make(chan error, 1)
			go func() { ended <- ask(r, stop) }()
			<-asked
			close(stop)
			select {
			case err := <-ended:
				if err == nil {
					t.Error("it has read something")
				}
			case <-time.After(10 * time.Second): // the client's own patience is 30 s
				t.Error("it still waits")
			}
			close(release)
			if _, err := New(client, r.topic, 0, nil).Read(nil, 0); err != nil {
				t.Error("the client is of no use any more:", err)
			}
		})
	}
}

// unreachable is a client whose connections are cut. The drain begins while it looks for a leader.
type unreachable struct {
	sarama.Client
	draining  chan struct{} // nil: it does not begin
	refreshes int
}

func (c *unreachable) Config() *sarama.Config { return sarama.NewConfig() }

func (c *unreachable) Leader(string, int32) (*sarama.Broker, error) {
	if c.draining != nil {
		close(c.draining)
	}
	return sarama.NewBroker("127.0.0.1:1"), nil // it is not connected
}

func (c *unreachable) RefreshMetadata(...string) error {
	c.refreshes++
	return nil
}

// A request that was cut since nobody needs its response is followed by no other one: as long as one is under way, the
// requests of others on the same connections are cut, too, and on a slow machine none of them would ever get through.
func TestNothingIsAskedAfterTheCut(t *testing.T) {
	for name, ask := range map[string]func(r *Reader, stop <-chan struct{}) error{
		"Read":        func(r *Reader, stop <-chan struct{}) error { _, err := r.Read(stop, 0); return err },
		"Tail":        func(r *Reader, stop <-chan struct{}) error { _, err := r.Tail(stop, 0); return err },
		"Undecodable": func(r *Reader, stop <-chan struct{}) error { _, _, err := r.Undecodable(stop, 0); return err },
	} {
		t.Run(name, func(t *testing.T) {
			for _, drains := range []bool{false, true} {
				c, want := &unreachable{}, 1
				if drains {
					c.draining, want = make(chan struct{}), 0
				}
				if err := ask(New(c, "topic", 0, nil), c.draining); err == nil {
					t.Error("no error")
				}
				if c.refreshes != want {
					t.Errorf("draining %v: metadata refreshed %d times, want %d", drains, c.refreshes, want)
				}
			}
		})
	}
}
