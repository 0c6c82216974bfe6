package commit

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/dial"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

const commitKey = kmsg.Key(8)

// bed is a committer with one partition whose watermark the test moves. It is
// nobody's member: Kafka takes the commits of an empty group without a generation.
type bed struct {
	broker *brokertest.Broker
	client sarama.Client
	group  string
	topic  string
	c      *Committer
	s      *Source

	mu        sync.Mutex
	mark      partition.Mark
	text      string // goes with it
	confirmed partition.Mark
	reverted  bool
	failed    []error
	attempts  []int
	putBack   [][2]int64
	fenced    error
	running   atomic.Int32
	network   brokertest.Network

	member     atomic.Pointer[string]
	generation atomic.Int32
}

func (b *bed) MemberID() string { return *b.member.Load() }

func (b *bed) GenerationID() int32 { return b.generation.Load() }

func newBed(t *testing.T, stored, cooperative bool) *bed {
	b := &bed{broker: brokertest.NewFake(t), group: brokertest.Group(t), topic: brokertest.Topic(t)}
	none := ""
	b.member.Store(&none)
	b.generation.Store(-1)
	b.running.Store(1)
	if err := brokertest.CreateTopic(b.broker.Addrs(), b.topic, 2); err != nil {
		t.Fatal(err)
	}
	config := sarama.NewConfig()
	b.network.Use(config)
	dialer := dial.New(config)
	client, err := sarama.NewClient(b.broker.Addrs(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	b.client = client
	b.c = New(Config{
		Client: client, Group: b.group, Interval: time.Hour, Cooperative: cooperative, Abort: dialer.Abort,
		PutBack: func(_ string, _ int32, found, wanted int64) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.putBack = append(b.putBack, [2]int64{found, wanted})
		},
		Committed: func(string, int32, int64, time.Duration) {},
		Failed: func(_ string, _ int32, _ int64, err error, attempt int, _ time.Duration) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.failed, b.attempts = append(b.failed, err), append(b.attempts, attempt)
		},
		Fenced: func(string, int32, int64, error) {},
	}, b)
	t.Cleanup(func() { b.c.Close() })
	b.source(stored, 0)
	return b
}

// source gives the bed its partition.
func (b *bed) source(stored bool, p int32) {
	b.s = b.c.NewSource(SourceConfig{
		Topic: b.topic, Partition: p, Stored: stored,
		Mark: func() partition.Mark {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.mark
		},
		Running: func() int { return int(b.running.Load()) },
		Snapshot: func(room int) (*partition.Snapshot, string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return &partition.Snapshot{Mark: b.mark}, b.text[:min(len(b.text), room)]
		},
		Reverted: func(s *partition.Snapshot) bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.reverted && s.Seq > b.mark.Seq
		},
		Confirmed: func(s *partition.Snapshot, _ bool) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.confirmed = s.Mark
		},
		Fenced: func(err error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.fenced = err
		},
	})
	b.s.Open()
}

func (b *bed) waiting() int {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	return len(b.s.waiters)
}

// takeOver makes the test the committer.
func (b *bed) takeOver() {
	b.c.Close()
	b.c.stop, b.c.done = make(chan struct{}), make(chan struct{})
	close(b.c.done)
}

func (b *bed) waits() bool { return b.waiting() > 0 }

// another is a further partition of the same committer.
func (b *bed) another(t *testing.T, p int32) *bed {
	o := &bed{broker: b.broker, client: b.client, group: b.group, topic: b.topic, c: b.c}
	o.running.Store(1)
	o.source(true, p)
	return o
}

func kerrToSarama(err *kerr.Error) error { return sarama.KError(err.Code) }

func (b *bed) move(offset int64, seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mark = partition.Mark{Offset: offset, Seq: seq, Version: seq}
}

// confirm is a Confirm of a record, which moves the mark behind it.
func (b *bed) confirm(offset int64, seq uint64) error {
	before := partition.Mark{}
	return b.s.Confirm(seq, func() (bool, func()) {
		before = b.mark
		b.move(offset+1, seq+1)
		return true, func() {}
	}, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.mark, b.reverted = before, true
		b.mark.Version = seq + 2
	})
}

func (b *bed) wantStored(t *testing.T, want int64) {
	t.Helper()
	got, err := brokertest.Committed(b.broker.Addrs(), b.group, b.topic, 0)
	if err != nil || got != want {
		t.Fatalf("stored offset %d (%v), want %d", got, err, want)
	}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// until polls: the committer reports what it did right after it did it.
func until(t *testing.T, holds func() bool) {
	t.Helper()
	for ctx := deadline(t); !holds(); {
		select {
		case <-ctx.Done():
			t.Fatal("it never held")
		case <-time.After(time.Millisecond):
		}
	}
}
