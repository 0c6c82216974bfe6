package group

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// state is what status --json prints.
func (b *bed) state(more ...string) State {
	b.t.Helper()
	r := b.want(cli.Done, nil, append([]string{"status", "--json"}, more...)...)
	var s State
	testkit.Check(b.t, json.Unmarshal([]byte(r.Out), &s))
	return s
}

// A held record, what is settled behind it, and its owner are seen from outside, while the
// group is up and after it went.
func TestStatus(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.put(0, 10)
	s := b.service("2", "5")
	var p Partition
	testkit.Eventually(t, "the commit of all that is settled", func() bool {
		if s.count() < 10 {
			return false
		}
		state := b.state()
		p = state.Partitions[0]
		return p.WorkLag == 2 && len(state.Members) == 1 && p.Member == state.Members[0].ID
	})
	if *p.Committed != 2 || p.Start != 0 || p.End != 10 || p.CommittedLag != 8 || p.Open != 2 || p.Deaths != 0 || p.Ledger != "" {
		t.Errorf("while it is up: %+v", p)
	}
	h := p.Holds
	if h == nil || h.Offset != 2 || h.Attempts != 1 || h.First == nil || h.Due == nil || h.Err != errHeld.Error() {
		t.Fatalf("what holds it: %+v", h)
	}
	if in := time.Until(*h.Due); in < 50*time.Minute || in > time.Hour {
		t.Errorf("it is due in %v", in)
	}
	b.want(cli.Done, []string{": Stable, 1 member. Lag 8, work 2.\n", "TOPIC", " 2 ", " in ", "billing-app", "\n\n" + b.topic + " 0: the last error of record 2: " + h.Err + "\n"}, "status", "--topic", b.topic)
	s.stop()
	state := b.state()
	if p = state.Partitions[0]; state.State != "Empty" || len(state.Members) > 0 || p.Member != "" || !p.LeftCleanly || p.WorkLag != 2 || p.Holds.Offset != 2 {
		t.Errorf("after it left: %+v", state)
	}
	b.want(cli.Done, []string{": Empty, 0 members.", " cleanly "}, "status")
}

// A record whose handler hangs in its first delivery is named with that delivery, and as in flight.
func TestStatusOfAHangingHandler(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.put(0, 3)
	release := make(chan struct{})
	cfg := testkit.Config(b.group)
	cfg.HandlerSlow = 300 * time.Millisecond
	s := testkit.NewService(t)
	s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	s.Router.AddConsumerHandler("charge", b.topic, testkit.NewSubscriber(t, cfg, s.Log), func(msg *message.Message) error {
		if string(msg.Payload) == "1" {
			return testkit.Until(msg.Context(), release)
		}
		return nil
	})
	began := time.Now()
	s.Start(t)
	var h *Held
	testkit.Eventually(t, "the commit that names it", func() bool {
		state := b.state("--topic", b.topic)
		h = state.Partitions[0].Holds
		return h != nil && h.Offset == 1 && h.Attempts == 1
	})
	if !h.InFlight || h.First == nil || h.First.Before(began.Add(-time.Second)) || h.First.After(time.Now()) || h.Due != nil {
		t.Errorf("what holds it: %+v", h)
	}
	b.want(cli.Done, []string{"  in flight  1 "}, "status")
	close(release)
	testkit.WaitCommitted(t, b.group, b.topic, 0, 3)
	s.Stop()
}

// A topic is shown with the partitions of which the group has nothing stored; a group that
// is not there, and a topic, are distinguished from ones without lag.
func TestStatusOfNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.put(0, 3)
	b.want(cli.Failed, []string{"there is no group " + b.group}, "status")
	b.want(cli.Failed, []string{"topic " + b.topic + "-gone: the topic does not exist"}, "status", "--topic", b.topic+"-gone")
	b.want(cli.Usage, []string{"no group: set --group", "See 'ackpolicy status --help'"}, "status", "--group", "")
	p := b.state("--topic", b.topic).Partitions[0]
	if p.Committed != nil || p.CommittedLag != 3 || p.WorkLag != 3 || p.Holds != nil {
		t.Errorf("nothing stored: %+v", p)
	}
	testkit.Check(t, brokertest.ResetOffset(testkit.Shared.Addrs(), b.group, b.topic, 0, 1))
	p = b.state().Partitions[0]
	if *p.Committed != 1 || p.WorkLag != 2 || p.Holds.Offset != 1 || p.Holds.Attempts != 0 || p.Ledger != "" {
		t.Errorf("by an admin tool: %+v", p)
	}
	testkit.Check(t, brokertest.ResetOffset(testkit.Shared.Addrs(), b.group, b.topic, 0, 3))
	if p = b.state().Partitions[0]; p.WorkLag != 0 || p.Holds != nil {
		t.Errorf("nothing left: %+v", p)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.put(0, 3)
	testkit.Check(t, brokertest.ResetOffset(testkit.Shared.Addrs(), b.group, b.topic, 0, 1))
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	var errs bytes.Buffer
	env := cli.NewEnv(func(string) string { return strings.Join(testkit.Shared.Addrs(), ",") }, strings.NewReader(""), out, &errs)
	code := make(chan int)
	go func() {
		defer close(code)
		code <- env.Run(ctx, []string{"status", "--watch", "--interval", "10ms", "--json", "--group", b.group}, Status)
	}()
	lines := json.NewDecoder(in)
	for want := int64(1); want <= 3; {
		var s State
		testkit.Check(t, lines.Decode(&s))
		if *s.Partitions[0].Committed == want {
			if want++; want <= 3 {
				testkit.Check(t, brokertest.ResetOffset(testkit.Shared.Addrs(), b.group, b.topic, 0, want))
			}
		}
	}
	cancel()
	testkit.Check(t, in.Close())
	if c := <-code; c != cli.Interrupted {
		t.Errorf("exit status %d: %s", c, errs.String())
	}
}

// What a commit says is only taken for what a member would take it.
func TestStored(t *testing.T) {
	t.Parallel()
	at := ledger.Place{Topic: "orders", Partition: 3, Offset: 100}
	here, elsewhere := [16]byte{1}, [16]byte{2}
	marks := []ledger.Block{{Runs: []ledger.Run{{From: 100, To: 103}, {From: 105, To: 110}}}}
	first := time.UnixMilli(1_800_000_000_000).UTC()
	own, _ := ledger.Encode(at, &ledger.Ledger{
		TopicID: here, Blocks: marks, Crashes: 2, CrashedAt: first, Open: []ledger.Open{{Offset: 103, Attempts: 7, First: first, InFlight: true, Err: "no such customer"}, {Offset: 104}},
	}, ledger.DefaultRoom)
	other, _ := ledger.Encode(at, &ledger.Ledger{TopicID: elsewhere, Blocks: marks}, ledger.DefaultRoom)
	redrive, _ := ledger.Encode(at, &ledger.Ledger{Kind: ledger.Redrive, Blocks: marks}, ledger.DefaultRoom)
	for _, test := range []struct {
		text  string
		start int64
		work  int64
		held  Held
		says  string
	}{
		{own, 0, 12, Held{Offset: 103, Attempts: 7, First: &first, InFlight: true, Err: "no such customer"}, ""},
		{own, 104, 11, Held{Offset: 104}, ""}, // retention took what held it
		{other, 0, 20, Held{Offset: 100}, "earlier topic"},
		{redrive, 0, 20, Held{Offset: 100}, "not a ledger"},
		{"x", 0, 20, Held{Offset: 100}, "not a ledger"},
		{"ackpolicy99:x", 0, 20, Held{Offset: 100}, "later version"},
		{"", 0, 20, Held{Offset: 100}, ""},
	} {
		p := Partition{Topic: "orders", Partition: 3, Start: test.start, End: 120}
		p.stored(kafka.Stored{Offset: 100, Metadata: test.text}, kafka.Topic{ID: here})
		held := *p.Holds
		if held.First != nil && held.First.Equal(first) {
			held.First = test.held.First
		}
		if p.CommittedLag != 20 || p.WorkLag != test.work || held != test.held || !strings.Contains(p.Ledger, test.says) || test.says == "" && p.Ledger != "" {
			t.Errorf("%.20q from %d: %+v holds %+v", test.text, test.start, p, held)
		}
	}
}
