package middlewares_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// TestMiddlewares runs each of Watermill's middlewares around every policy and inside of it, on a handler that ends in every
// way. docs/middlewares.md holds what is seen: that is what the test wants. After a change that is meant:
//
//	go test ./test/middlewares -run TestMiddlewares -update
//
// Each place of a table has a partition with two records. The handler ends as the place says on the first; the second is
// what shows whether that one holds the commit.
//
// It does not run beside other tests: so many partitions need a broker to themselves.
func TestMiddlewares(t *testing.T) {
	topic := testkit.NewTopic(t, int32(len(places)))
	for p := range int32(len(places)) {
		testkit.Produce(t, topic, p, brokertest.Record{
			Value:   fmt.Append(nil, p),
			Headers: []sarama.RecordHeader{{Key: []byte(middleware.CorrelationIDMetadataKey), Value: []byte("7")}},
		}, brokertest.Values("next")[0])
	}
	alone := observe(t, topic, variant{build: nothing})
	t.Run("none", func(t *testing.T) { documented(t, "none", tableOf(alone)) })
	turns := make(chan struct{}, 4) // more at a time take each other the time
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			documented(t, v.name, v.table(alone, observe(t, topic, v)))
		})
	}
}

// place is one of a table: a policy, where it is, and how the handler ends.
type place struct {
	outside bool // our middleware
	policy  ackpolicy.Policy
	ending  ending
}

func (p place) String() string {
	where := "inside"
	if p.outside {
		where = "outside"
	}
	return fmt.Sprintf("%v %s, %s", p.policy, where, p.ending.name)
}

// places are all there are; the first record of the partition of that number shows what happens there.
var places = func() (all []place) {
	for _, outside := range []bool{true, false} {
		for _, policy := range testkit.Policies {
			for _, e := range endings {
				all = append(all, place{outside, policy, e})
			}
		}
	}
	return all
}()

// observe runs a Router with the middlewares of each place around its records, and returns what was seen there.
func observe(t *testing.T, topic string, v variant) []*sight {
	t.Helper()
	group := brokertest.Group(t)
	s := testkit.NewService(t)
	o := &observer{}
	for _, p := range places {
		o.seen = append(o.seen, &sight{place: p})
	}
	sub := testkit.NewSubscriber(t, testkit.Config(group, func(c *ackpolicy.SubscriberConfig) { c.DeadLetter = o }), s.Log)
	s.Router.AddHandler("handler", topic, sub, "out", o, o.handle).AddMiddleware(o.watch, o.middlewares(t, v))
	s.Start(t)
	if !testkit.Poll(func() bool { return len(o.waiting()) == 0 }) {
		t.Fatalf("gave up after %v, waiting for the second record of: %v", testkit.Patience, o.waiting())
	}
	s.Stop()
	stored, err := brokertest.CommittedAll(testkit.Shared.Addrs(), group, topic)
	testkit.Check(t, err)
	for p, seen := range o.seen {
		seen.check(t, stored[int32(p)])
	}
	return o.seen
}

// observer is the handler, what watches it, and the destinations of what it produces.
type observer struct {
	mu   sync.Mutex
	seen []*sight // by partition; their fields are guarded by mu, too
}

// sight is what was seen of the first record of a place.
type sight struct {
	place
	deliveries []*ackpolicy.Delivery
	router     []string // what reached the Router, a delivery
	calls      int      // of the handler
	succeeded  bool     // the handler, once
	refused    bool     // what was published first
	published  int
	poisoned   []string // by which reason
	letters    int
	notes      []string
	over       bool // the second record has come
}

// note keeps a remark for the table, once.
func (s *sight) note(text string) {
	if !slices.Contains(s.notes, text) {
		s.notes = append(s.notes, text)
	}
}

// at has the lock while it runs.
func (o *observer) at(partition int32, do func(s *sight)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	do(o.seen[partition])
}

// waiting are the places whose second record has not come.
func (o *observer) waiting() (places []place) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.seen {
		if !s.over {
			places = append(places, s.place)
		}
	}
	return places
}

// middlewares are those of each place: some have a state.
func (o *observer) middlewares(t *testing.T, v variant) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc {
		var handlers []message.HandlerFunc
		for p, at := range places {
			c := chain{t: t, ours: ackpolicy.Middleware{Policy: at.policy, Classify: v.classify}, publisher: o}
			c.note = func(text string) { o.at(int32(p), func(s *sight) { s.note(text) }) }
			theirs, ours := v.build(c), c.ours.Middleware
			switch {
			case v.stack:
				handlers = append(handlers, theirs(h))
			case at.outside:
				handlers = append(handlers, ours(theirs(h)))
			default:
				handlers = append(handlers, theirs(ours(h)))
			}
		}
		return func(msg *message.Message) ([]*message.Message, error) {
			d, _ := ackpolicy.FromMessage(msg)
			return handlers[d.Partition()](msg)
		}
	}
}

// watch is the outermost middleware: what reaches it reaches the Router.
func (o *observer) watch(h message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (produced []*message.Message, err error) {
		d, _ := ackpolicy.FromMessage(msg)
		if d.Offset() > 0 {
			return h(msg)
		}
		o.at(d.Partition(), func(s *sight) { s.deliveries = append(s.deliveries, d) })
		defer func() {
			v := recover()
			o.at(d.Partition(), func(s *sight) { s.router = append(s.router, testkit.Describe(err, v)) })
			if v != nil {
				panic(v)
			}
		}()
		return h(msg)
	}
}

func (o *observer) handle(msg *message.Message) ([]*message.Message, error) {
	d, _ := ackpolicy.FromMessage(msg)
	at := places[d.Partition()]
	var produced []*message.Message
	if d.Offset() == 0 {
		call := 0
		o.at(d.Partition(), func(s *sight) { s.calls++; call = s.calls })
		produced = message.Messages{message.NewMessage("out", msg.Payload)}
		if call <= at.ending.calls {
			if err := at.ending.end(msg, d); err != nil {
				return produced, err
			}
		}
		o.at(d.Partition(), func(s *sight) { s.succeeded = true })
	}
	if at.policy == ackpolicy.Manual {
		d.Ack()
	}
	if d.Offset() > 0 {
		o.at(d.Partition(), func(s *sight) { s.over = true })
	}
	return produced, nil
}

// Publish implements message.Publisher, for what the handler produces and for the poison queue.
func (o *observer) Publish(topic string, messages ...*message.Message) (err error) {
	p, err := strconv.Atoi(string(messages[0].Payload))
	if err != nil {
		return err
	}
	o.at(int32(p), func(s *sight) {
		switch {
		case !s.refused && (topic == brokenTopic || topic == "out" && s.ending.failPublish):
			s.refused, err = true, testkit.ErrBoom
		case topic != "out":
			s.poisoned = append(s.poisoned, messages[0].Metadata.Get(middleware.ReasonForPoisonedKey))
		default:
			s.published += len(messages)
			if middleware.MessageCorrelationID(messages[0]) != "" {
				s.note("what is published is correlated")
			}
		}
	})
	return err
}

func (o *observer) Close() error { return nil }

// Send implements ackpolicy.DeadLetter.
func (o *observer) Send(_ context.Context, record *sarama.ConsumerMessage, letter ackpolicy.Letter) error {
	o.at(record.Partition, func(s *sight) {
		s.letters++
		if strings.Contains(letter.Reason.Error(), "stacktrace") {
			s.note("the letter's reason has the stack")
		}
	})
	return nil
}

// check asserts what holds in every place. The table has the rest.
func (s *sight) check(t *testing.T, stored int64) {
	t.Helper()
	want, rejects := int64(2), 0
	for i, d := range s.deliveries {
		if d.Attempt() != i+1 {
			t.Errorf("%v: delivery %d is attempt %d", s, i+1, d.Attempt())
		}
		switch d.Status() {
		case ackpolicy.Rejected:
			rejects++
		case ackpolicy.Revoked: // nobody had settled it
			want = 0
		}
	}
	if stored != want {
		t.Errorf("%v: stored offset %d, want %d", s, stored, want)
	}
	if s.letters != rejects {
		t.Errorf("%v: %d letters, %d rejects", s, s.letters, rejects)
	}
}
