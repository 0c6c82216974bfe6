package semantics_test

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var (
	delays     = flag.Int("delays", 600, "records of TestManyDelays")
	delayMax   = flag.Duration("delay-max", 4*time.Second, "their longest delay; the shortest is a sixtieth of it")
	delayGrace = flag.Duration("delay-grace", 500*time.Millisecond, "how late they may be")
)

// slack is how much longer things may take on a real broker that other tests use, too: topics are made, groups form.
func slack() time.Duration {
	if testkit.Shared.Real() {
		return 20 * time.Second
	}
	return 0
}

// delayedBy gives a record the metadata with which a publisher asks for a delay.
func delayedBy(r brokertest.Record, d delay.Delay) brokertest.Record {
	msg := message.NewMessage("", nil)
	delay.Message(msg, d)
	return withMetadata(r, msg.Metadata[delay.DelayedUntilKey], msg.Metadata[delay.DelayedForKey])
}

func withMetadata(r brokertest.Record, until, after string) brokertest.Record {
	r.Headers = append(r.Headers,
		sarama.RecordHeader{Key: []byte(delay.DelayedUntilKey), Value: []byte(until)},
		sarama.RecordHeader{Key: []byte(delay.DelayedForKey), Value: []byte(after)})
	return r
}

// times has when each attempt of each record began.
type times struct {
	mu  sync.Mutex
	all map[int64][]time.Time
}

func (s *times) add(d *ackpolicy.Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[int64][]time.Time{}
	}
	s.all[d.Offset()] = append(s.all[d.Offset()], time.Now())
}

func (s *times) of(offset int64) []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all[offset])
}

// A record whose metadata asks for a delay is not delivered before that is over, and holds back what its ordering puts
// behind it, also over a restart. What is settled meanwhile does not come again.
func TestDelayedRecord(t *testing.T) {
	t.Parallel()
	for name, order := range orderings() {
		for restart, restarts := range map[string]bool{"": false, ", restart": true} {
			t.Run(name+restart, func(t *testing.T) {
				t.Parallel()
				wait := 2500*time.Millisecond + slack()/2 // until the one after it is handled, and a restart is over
				group, topic := brokertest.Group(t), testkit.NewTopic(t, 1)
				due := time.Now().Add(wait)
				records := testkit.Keyed("a", "b", "a")
				records[0] = delayedBy(records[0], delay.For(wait))
				testkit.Produce(t, topic, 0, records...)
				var seen times
				handler := func(msg *message.Message, d *ackpolicy.Delivery) error {
					seen.add(d)
					if after := msg.Metadata.Get(delay.DelayedForKey); d.Offset() == 0 && after != wait.String() {
						t.Errorf("metadata %q", after)
					}
					return nil
				}
				run := func() *testkit.Service {
					return testkit.Consume(t, testkit.Config(group, order), topic, handler, ackpolicy.NackOnError.Middleware)
				}
				s := run()
				if name != "by partition" {
					testkit.Eventually(t, "the record that does not wait", func() bool { return len(seen.of(1)) > 0 })
				}
				if restarts {
					s.Stop()
					if name != "by partition" { // nothing may have been committed yet
						testkit.WantCommitted(t, group, topic, 0, 0)
					}
					s = run()
				}
				testkit.WaitCommitted(t, group, topic, 0, 3)
				s.Stop()
				for offset := range int64(3) {
					if n := len(seen.of(offset)); n != 1 {
						t.Fatalf("record %d was delivered %d times", offset, n)
					}
				}
				first, other, behind := seen.of(0)[0], seen.of(1)[0], seen.of(2)[0]
				if late := first.Sub(due); late < 0 || late > 4**delayGrace+slack() { // the group may take longer to form
					t.Errorf("delivered %v after it was due", late)
				}
				if other.Before(first) != (name != "by partition") {
					t.Errorf("the record of another key came %v after it", other.Sub(first))
				}
				if behind.Before(first) != (name == "unordered") {
					t.Errorf("the record of the same key came %v after it", behind.Sub(first))
				}
			})
		}
	}
}

// Delays are as exact as Watermill's metadata: where its second and its duration agree with the record's timestamp, to the
// millisecond.
func TestDelayMetadata(t *testing.T) {
	t.Parallel()
	at := func(d time.Duration) func(time.Time) string {
		return func(now time.Time) string { return now.Add(d).UTC().Format(time.RFC3339) }
	}
	is := func(text string) func(time.Time) string { return func(time.Time) string { return text } }
	for name, c := range map[string]struct {
		until    func(now time.Time) string
		after    string
		maxDelay time.Duration
		min, max time.Duration // from now on
		line     string
	}{
		"over":                   {until: at(-time.Minute), after: "1s"},
		"garbage":                {until: is("soon"), after: "1s", line: "Delay metadata cannot be read"},
		"another garbage":        {until: is(""), after: "a while", line: "Delay metadata cannot be read"},
		"a second only":          {until: at(3 * time.Second), min: 2 * time.Second, max: 3 * time.Second},
		"a duration only":        {until: is(""), after: "1300ms", min: 1300 * time.Millisecond, max: 1300 * time.Millisecond},
		"both":                   {until: at(1500 * time.Millisecond), after: "1500ms", min: 1500 * time.Millisecond, max: 1500 * time.Millisecond},
		"in disagreement":        {until: at(3 * time.Second), after: "1h", min: 2 * time.Second, max: 3 * time.Second},
		"more than MaxDelay":     {until: is("9999-12-31T23:59:59Z"), after: "1h", maxDelay: time.Second, min: time.Second, max: time.Second, line: "more than MaxDelay"},
		"a duration without end": {until: is(""), after: "2562047h47m16.854775807s", maxDelay: time.Second, min: time.Second, max: time.Second, line: "more than MaxDelay"},
		"switched off":           {until: at(time.Hour), after: "1h", maxDelay: -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), testkit.NewTopic(t, 1)
			now := time.Now()
			r := withMetadata(testkit.Keyed("a")[0], c.until(now), c.after)
			r.Timestamp = now
			testkit.Produce(t, topic, 0, r)
			var seen times
			s := testkit.Consume(t, testkit.Config(group, func(cfg *ackpolicy.SubscriberConfig) { cfg.MaxDelay = c.maxDelay }), topic,
				func(_ *message.Message, d *ackpolicy.Delivery) error { seen.add(d); return nil }, ackpolicy.NackOnError.Middleware)
			began := time.Since(now)
			testkit.WaitCommitted(t, group, topic, 0, 1)
			s.Stop()
			took := seen.of(0)[0].Sub(now)
			if took < c.min-2*time.Millisecond || took > max(c.max, began)+2*time.Second+slack() { // Kafka's timestamps are whole milliseconds
				t.Errorf("delivered after %v, want %v to %v", took, c.min, c.max)
			}
			lines := testkit.Containing(s.Log.At("error"), "Delay metadata")
			if len(lines) > 1 || (len(lines) == 1) != (c.line != "") || c.line != "" && !strings.Contains(lines[0], c.line) {
				t.Errorf("lines %q", lines)
			}
		})
	}
}

// A cumulative ack does not settle a record that was never delivered.
func TestAckCumulativeAndADelayedRecord(t *testing.T) {
	t.Parallel()
	records := testkit.Keyed("a", "b")
	records[0] = delayedBy(records[0], delay.For(time.Hour))
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, records...)
	s := testkit.Consume(t, testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 4)), topic,
		func(_ *message.Message, d *ackpolicy.Delivery) error { d.AckCumulative(); return nil }, ackpolicy.Manual.Middleware)
	testkit.SettledAll(t, s, 1)
	s.Stop()
	s.Want(t, "1#1")
	testkit.WantCommitted(t, group, topic, 0, 0)
	if left := testkit.Containing(s.Log.At("info", "error"), "unsettled records"); len(left) > 0 { // it was not delivered
		t.Errorf("lines %q", left)
	}
}

// Messages that are published with Watermill's own delay publisher come when they are due.
func TestDelayPublisher(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1)
	to, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: testkit.Shared.Addrs(), Marshaler: kafka.DefaultMarshaler{}}, nil)
	testkit.Check(t, err)
	publisher, err := delay.NewPublisher(to, delay.PublisherConfig{
		DefaultDelayGenerator: func(delay.DefaultDelayGeneratorParams) (delay.Delay, error) {
			return delay.For(1300 * time.Millisecond), nil
		},
	})
	testkit.Check(t, err)
	published := time.Now()
	testkit.Check(t, publisher.Publish(topic, message.NewMessage("1", nil)))
	testkit.Check(t, publisher.Close())
	var seen times
	testkit.Consume(t, testkit.Config(group), topic, func(_ *message.Message, d *ackpolicy.Delivery) error { seen.add(d); return nil }, ackpolicy.Ack.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 1)
	if took := seen.of(0)[0].Sub(published); took < 1300*time.Millisecond {
		t.Errorf("delivered after %v", took)
	}
}

// Many delays over a restart: none is early, each is kept to the moment, or to that of the restart, each record is delivered
// once, and those of a key are in order.
//
//	go test ./test/semantics -run TestManyDelays -delays 10000 -delay-max 60s -delay-grace 50ms
func TestManyDelays(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1)
	due := make([]time.Time, *delays)
	keys := len(due) / 3 // a record waits for its time, or for one before it
	for from := 0; from < len(due); from += 100 {
		var records []brokertest.Record
		for i := from; i < min(from+100, len(due)); i++ {
			// Not at random: those behind a longer delay of their key come with it.
			d := *delayMax/60 + time.Duration(i*7919%len(due))*(*delayMax-*delayMax/60)/time.Duration(len(due))
			due[i] = time.Now().Add(d)
			r := delayedBy(brokertest.KeyValue(fmt.Sprint(i%keys), ""), delay.For(d))
			r.Timestamp = time.Now() // Produce connects first, which a publisher has done long before: that is no lateness of ours
			records = append(records, r)
		}
		testkit.Produce(t, topic, 0, records...)
	}
	var mu sync.Mutex
	handed := make([]time.Time, len(due))
	var order []int64
	handler := func(_ *message.Message, d *ackpolicy.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		if d.Attempt() != 1 || !handed[d.Offset()].IsZero() {
			t.Errorf("record %d was delivered again", d.Offset())
		}
		handed[d.Offset()] = time.Now()
		order = append(order, d.Offset())
		return nil
	}
	done := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(order)
	}
	run := func() *testkit.Service {
		return testkit.Consume(t, testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 64)), topic, handler, ackpolicy.NackOnError.Middleware)
	}
	wait := func(what string, n int) {
		if !testkit.PollFor(testkit.Patience+*delayMax, func() bool { return done() >= n }) {
			t.Fatalf("%s: %d of %d delivered", what, done(), len(due))
		}
	}
	s := run()
	wait("before the restart", len(due)/3)
	s.Stop()
	before := done()
	s = run()
	wait("the first one after the restart", before+1)
	wait("all", len(due))
	s.Stop()
	testkit.WantCommitted(t, group, topic, 0, int64(len(due)))
	latest := map[int]time.Time{}
	var late []time.Duration
	for n, offset := range order {
		i, key := int(offset), int(offset)%keys
		if handed[i].Before(due[i]) {
			t.Errorf("record %d came %v too early", i, due[i].Sub(handed[i]))
		}
		from := due[i]
		start := handed[order[0]]
		if n >= before {
			start = handed[order[before]]
		}
		for _, other := range []time.Time{latest[key], start} {
			if other.After(from) {
				from = other
			}
		}
		late = append(late, handed[i].Sub(from))
		latest[key] = handed[i]
	}
	slices.Sort(late)
	within, _ := slices.BinarySearch(late, 50*time.Millisecond)
	t.Logf("%d before the restart; %d of %d within 50 ms; late by %v at most, %v for 99 of 100, %v for half",
		before, within, len(late), late[len(late)-1], late[len(late)*99/100], late[len(late)/2])
	if most := late[len(late)-1]; most > *delayGrace {
		t.Errorf("a record came %v late", most)
	}
	last := map[int]int64{}
	for _, offset := range order {
		key := int(offset) % keys
		if before, ok := last[key]; ok && before > offset {
			t.Errorf("record %d came after record %d of the same key", offset, before)
		}
		last[key] = offset
	}
}
