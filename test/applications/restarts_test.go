package applications_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
	"github.com/ackpolicy/watermill-ackpolicy/test/applications/after"
	"github.com/ackpolicy/watermill-ackpolicy/test/applications/before"
	"github.com/ackpolicy/watermill-ackpolicy/test/applications/shop"
)

var restarts = flag.Int("restarts", 5, "restarts in TestRestarts")

// TestRestarts restarts SharedRouter, whose constructor adds a PoisonQueue without a filter, while it works on a backlog. Its
// handlers fail for no record. They take 1 to 50 ms and honour their context, which Watermill's Router cancels as it closes.
// On watermill-kafka they then fail, and their records are poisoned. On this library they finish first.
func TestRestarts(t *testing.T) {
	if testing.Short() {
		t.Skip("restarts services for some seconds")
	}
	t.Parallel()
	results := map[string]*counts{}
	t.Run("applications", func(t *testing.T) {
		for name, app := range map[string]constructor{"watermill-kafka": before.SharedRouter, "ours": after.SharedRouter} {
			results[name] = &counts{}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := &restarted{started: map[string]bool{}, ended: map[string]bool{}}
				*results[name] = r.restart(t, app)
			})
		}
	})
	ours, stock := results["ours"], results["watermill-kafka"]
	t.Logf("restarts=%d ours: %d records, %d poisoned, %d started twice, %d lost | watermill-kafka: %d records, %d poisoned, %d started twice, %d lost",
		*restarts, ours.records, ours.poisoned, ours.twice, ours.lost, stock.records, stock.poisoned, stock.twice, stock.lost)
	if ours.poisoned+ours.twice+ours.lost > 0 {
		t.Errorf("ours: %d poisoned, %d started twice, %d lost", ours.poisoned, ours.twice, ours.lost)
	}
}

type counts struct{ records, poisoned, twice, lost int }

// restarted is what became of the orders so far.
type restarted struct {
	mu       sync.Mutex
	poisoned int
	began    int
	started  map[string]bool // by order
	ended    map[string]bool // handled or poisoned
}

const restartPartitions = 8

func (r *restarted) restart(t *testing.T, app constructor) (c counts) {
	group, topic := brokertest.Group(t), testkit.NewTopic(t, restartPartitions)
	for p := range int32(restartPartitions) {
		orders := make([]string, 12*(*restarts+1))
		for i := range orders {
			orders[i] = fmt.Sprintf(`{"ID":"%d-%d"}`, p, i)
		}
		testkit.Produce(t, topic, p, brokertest.Values(orders...)...)
		c.records += len(orders)
	}
	log := testkit.NewLog(t)
	start := func() (stop func()) {
		service, err := app(shop.Shop{
			Kafka: testkit.Config(group).Kafka, Topic: topic, Logger: log,
			Publisher: publisherFunc(r.publish), Handle: r.handle,
		})
		testkit.Check(t, err)
		return run(t, service)
	}
	for i := range *restarts {
		stop := start()
		want := r.count() + 20 + 13*(i%5) // 46 on average, of 96 that there are per restart
		testkit.Eventually(t, "progress", func() bool { return r.count() >= want })
		stop()
	}
	stop := start()
	testkit.Poll(func() bool { return r.gone() == c.records })
	stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	c.poisoned, c.twice, c.lost = r.poisoned, r.began-len(r.started), c.records-len(r.ended)
	return c
}

func (r *restarted) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.began
}

func (r *restarted) gone() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ended)
}

// publish receives what the PoisonQueue publishes.
func (r *restarted) publish(_ string, msg *message.Message) error {
	var o shop.Order
	if err := json.Unmarshal(msg.Payload, &o); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.poisoned++
	r.ended[o.ID] = true
	return nil
}

func (r *restarted) handle(ctx context.Context, _ string, o *shop.Order) error {
	r.mu.Lock()
	r.began++
	r.started[o.ID] = true
	work := time.Millisecond * time.Duration(1+r.began*37%50)
	r.mu.Unlock()
	select {
	case <-time.After(work):
	case <-ctx.Done():
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended[o.ID] = true
	return nil
}
