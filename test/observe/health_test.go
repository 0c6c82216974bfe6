package observe_test

import (
	"encoding/json"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// The probes say whether a Subscriber works, and why not.
func TestProbes(t *testing.T) {
	t.Parallel()
	s := testkit.NewService(t)
	sub := testkit.NewSubscriber(t, testkit.Config(brokertest.Group(t)), s.Log)
	want := func(when string, live, ready int, code ackpolicy.ProblemCode) {
		t.Helper()
		l, r := httptest.NewRecorder(), httptest.NewRecorder()
		sub.LivezHandler().ServeHTTP(l, httptest.NewRequest("GET", "/livez", nil))
		sub.ReadyzHandler().ServeHTTP(r, httptest.NewRequest("GET", "/readyz", nil))
		if l.Code != live || r.Code != ready {
			t.Errorf("%s: %d and %d, want %d and %d: %s", when, l.Code, r.Code, live, ready, r.Body)
		}
		var h ackpolicy.Health
		testkit.Check(t, json.Unmarshal(r.Body.Bytes(), &h))
		switch {
		case code == "" && len(h.Problems) > 0, code != "" && (len(h.Problems) != 1 || h.Problems[0].Code != code):
			t.Errorf("%s: %+v, want %q", when, h, code)
		}
	}
	want("before Subscribe", 200, 503, ackpolicy.ProblemNotConsuming)
	topic := testkit.NewTopic(t, 1)
	s.Router.AddConsumerHandler("orders", topic, sub, s.Recorded(testkit.Succeed))
	s.Start(t)
	testkit.Eventually(t, "the assignment", func() bool {
		st := sub.State()
		return len(st.Subscriptions) == 1 && len(st.Subscriptions[0].Partitions) == 1
	})
	want("consuming", 200, 200, "")
	s.Stop()
	want("closed", 200, 503, ackpolicy.ProblemNotConsuming)
}

// A lost broker makes a Subscriber not ready, though its Router runs on, and a found one ready again.
func TestHealthThroughAnOutage(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1)
	var network brokertest.Network
	cfg := testkit.Config(brokertest.Group(t))
	network.Use(cfg.Kafka.OverwriteSaramaConfig)
	o := observe(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "the assignment", func() bool {
		_, ok := o.partition(0)
		return ok && o.Sub.Health().Ready
	})
	network.Cut()
	defer network.Heal()
	var h ackpolicy.Health
	testkit.Eventually(t, "not to be ready", func() bool {
		h = o.Sub.Health()
		return !h.Ready
	})
	if !h.Live || h.Problems[0].Code != ackpolicy.ProblemKafka && h.Problems[0].Code != ackpolicy.ProblemNotConsuming || h.Problems[0].Topic != topic {
		t.Errorf("health: %+v", h)
	}
	network.Heal()
	testkit.Eventually(t, "to be ready again", func() bool { return o.Sub.Health().Ready })
	testkit.Eventually(t, "the line that it is over", func() bool {
		return len(testkit.Containing(o.Log.At("info"), "Kafka works again")) == 1
	})
}

// MaxUncommitted behind records that nobody settles is reported within seconds, and so is its end.
func TestBlockedPartition(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(20)...)
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.Unordered, 4))
	cfg.MaxUncommitted = 5
	var settle atomic.Bool
	o := observe(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if settle.Load() {
			d.Ack()
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	testkit.Eventually(t, "to be blocked", func() bool {
		h := o.Sub.Health()
		return !h.Ready && len(h.Problems) == 1 && h.Problems[0].Code == ackpolicy.ProblemBlocked && h.Problems[0].Offset == 0
	})
	settle.Store(true)
	for _, d := range o.Journal.All() {
		d.Ack()
	}
	testkit.WaitCommitted(t, group, topic, 0, 20)
	if h := o.Sub.Health(); !h.Ready || len(h.Problems) > 0 {
		t.Errorf("afterwards: %+v", h)
	}
}

// Where there is lag, records wait behind MaxUncommitted all the time. That is no problem, whether they are handled or
// somebody has paused them.
func TestLagIsNoProblem(t *testing.T) {
	t.Parallel()
	const records = 400
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(records)...)
	cfg := testkit.Config(group)
	cfg.MaxUncommitted = 5
	blocked := make(chan ackpolicy.BlockedEvent, 100)
	cfg.Hooks.Blocked = func(e ackpolicy.BlockedEvent) { blocked <- e }
	o := observe(t, cfg, topic, func(*message.Message, *ackpolicy.Delivery) error {
		<-time.After(5 * time.Millisecond)
		return nil
	}, ackpolicy.NackOnError.Middleware)
	testkit.Eventually(t, "records to wait", func() bool {
		st, ok := o.partition(0)
		return ok && st.Blocked
	})
	looks, waiting := 0, 0
	healthy := func() bool {
		if st, ok := o.partition(0); ok {
			looks++
			if st.Blocked {
				waiting++
			}
			if h := o.Sub.Health(); len(h.Problems) > 0 {
				t.Fatalf("%+v: %+v", h, st)
			}
		}
		return false
	}
	testkit.PollFor(time.Second, healthy)
	testkit.Check(t, o.Sub.Pause("alice", topic))
	testkit.PollFor(4*time.Second, healthy)
	if looks == 0 || waiting < looks/2 {
		t.Errorf("in %d of %d looks records waited behind MaxUncommitted", waiting, looks)
	}
	if n := len(blocked); n > 0 {
		t.Errorf("a pause was reported: %+v", <-blocked)
	}
	testkit.Check(t, o.Sub.Resume("alice", topic))
	testkit.WaitCommitted(t, group, topic, 0, records)
}
