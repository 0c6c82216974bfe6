package applications_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/components/requestreply"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
	"github.com/ackpolicy/watermill-ackpolicy/test/applications/after"
	"github.com/ackpolicy/watermill-ackpolicy/test/applications/before"
	"github.com/ackpolicy/watermill-ackpolicy/test/applications/shop"
)

type constructor func(shop.Shop) (shop.Service, error)

// applications are those of the packages before and after.
var applications = map[string]struct {
	before, after constructor
	handlers      []string
	groups        []string // each a suffix of the group's name
}{
	"Commands":              {before.Commands, after.Commands, []string{"place"}, []string{""}},
	"Events":                {before.Events, after.Events, []string{"bill", "ship"}, []string{"-bill", "-ship"}},
	"EventGroups":           {before.EventGroups, after.EventGroups, []string{"shop"}, []string{"-shop"}},
	"RequestReply":          {before.RequestReply, after.RequestReply, []string{"place"}, []string{""}},
	"ConstructorPerHandler": {before.ConstructorPerHandler, after.ConstructorPerHandler, []string{"bill", "ship"}, []string{"-bill", "-ship"}},
	"SharedRouter":          {before.SharedRouter, after.SharedRouter, []string{"place"}, []string{""}},
	"NoGroup":               {before.NoGroup, after.NoGroup, []string{"cache"}, nil},
	"Loop":                  {before.Loop, after.Loop, []string{"loop"}, []string{""}},
	"FanIn":                 {before.FanIn, after.FanIn, []string{"published"}, []string{""}},
	"Forwarder":             {before.Forwarder, after.Forwarder, []string{"published"}, []string{""}},
	"Requeuer":              {before.Requeuer, after.Requeuer, []string{"published"}, []string{""}},
}

// Each application gets three orders, of which it cannot handle the second. On watermill-kafka that one comes again forever,
// and the third never, unless there is a PoisonQueue. After the move each handler gets each order once.
func TestMovedApplications(t *testing.T) {
	t.Parallel()
	for name, app := range applications {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Run("before", func(t *testing.T) {
				t.Parallel()
				run := start(t, name, app.before)
				if name == "SharedRouter" {
					testkit.WaitCommitted(t, run.group, run.topic, 0, 3) // what the move changes is in TestRestarts
					return
				}
				testkit.Eventually(t, "the second order, again and again", func() bool { return run.count(app.handlers[0], "2") > 2 })
				if n := run.count(app.handlers[0], "3"); n > 0 {
					t.Errorf("the third order came %d times", n)
				}
			})
			t.Run("after", func(t *testing.T) {
				t.Parallel()
				run := start(t, name, app.after)
				want := map[string]int{}
				for _, handler := range app.handlers {
					for _, id := range []string{"1", "2", "3"} {
						want[handler+" "+id] = 1
					}
				}
				testkit.Eventually(t, "all orders", func() bool { return len(run.all()) == len(want) })
				for _, suffix := range app.groups {
					testkit.WaitCommitted(t, run.group+suffix, run.topic, 0, 3)
				}
				if got := run.all(); !maps.Equal(got, want) {
					t.Errorf("handled: %v, want %v", got, want)
				}
			})
		})
	}
}

// running is an application that runs, and how often each handler got each order.
type running struct {
	topic, group string

	mu      sync.Mutex
	handled map[string]int
}

func (r *running) handle(_ context.Context, handler string, o *shop.Order) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handled[handler+" "+o.ID]++
	if o.ID == "2" {
		return testkit.ErrBoom
	}
	return nil
}

func (r *running) count(handler, id string) int { return r.all()[handler+" "+id] }

func (r *running) all() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.handled)
}

// start gives an application its orders, and runs it until the test's end.
func start(t *testing.T, name string, app constructor) *running {
	t.Helper()
	r := &running{topic: testkit.NewTopic(t, 1), group: brokertest.Group(t), handled: map[string]int{}}
	publisher := newPublisher(t)
	var envelopes message.Publisher = publisher
	if name == "Forwarder" {
		envelopes = forwarder.NewPublisher(publisher, forwarder.PublisherConfig{ForwarderTopic: r.topic})
	}
	for i := range 3 {
		msg, err := shop.Names.Marshal(&shop.Order{ID: fmt.Sprint(i + 1)})
		testkit.Check(t, err)
		msg.Metadata.Set(requestreply.OperationIDMetadataKey, "1")
		testkit.Check(t, envelopes.Publish(r.topic, msg))
	}
	backend, err := requestreply.NewPubSubBackend[struct{}](requestreply.PubSubBackendConfig{
		Publisher:              &testkit.FailingPublisher{},
		SubscriberConstructor:  func(requestreply.PubSubBackendSubscribeParams) (message.Subscriber, error) { return nil, nil },
		GeneratePublishTopic:   func(requestreply.PubSubBackendPublishParams) (string, error) { return "replies", nil },
		GenerateSubscribeTopic: func(requestreply.PubSubBackendSubscribeParams) (string, error) { return "replies", nil },
	}, requestreply.BackendPubsubJSONMarshaler[struct{}]{})
	testkit.Check(t, err)
	service, err := app(shop.Shop{
		Kafka: testkit.Config(r.group).Kafka, Topic: r.topic, Publisher: publisherFunc(r.published), Backend: backend,
		Handle: r.handle, Logger: testkit.NewLog(t),
	})
	testkit.Check(t, err)
	run(t, service)
	return r
}

// published handles what an application publishes.
func (r *running) published(topic string, msg *message.Message) error {
	if topic == "poison" {
		return nil
	}
	var o shop.Order
	if err := json.Unmarshal(msg.Payload, &o); err != nil {
		return err
	}
	return r.handle(msg.Context(), "published", &o)
}
