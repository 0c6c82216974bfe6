package batches_test

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// crashChildEnv makes the test binary the consumer of TestCrashLoop; its value is the crashSpec.
const crashChildEnv = "ACKPOLICY_BATCHES_CRASH_CHILD"

const deadly = 150

// crashSpec is what the consumer runs. Its handler ends the process if record deadly is in the batch.
type crashSpec struct{ Group, Topic string }

// Consume implements testkit.Consumer.
func (s crashSpec) Consume(stop io.Reader) error {
	cfg := testkit.Config(s.Group, testkit.Ordering(ackpolicy.OrderByKey, 0))
	cfg.MaxDeliveries, cfg.DeadLetter = 3, testkit.WrittenLetters{}
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Session.Timeout = time.Second
	router, sub, err := testkit.ChildRouter(cfg, ackpolicy.NackOnError.Middleware)
	if err != nil {
		return err
	}
	router.AddConsumerHandler("handler", s.Topic, sub.Batches(ackpolicy.BatchConfig{Size: 100, Wait: 10 * time.Millisecond}),
		(&calls{}).recorded(func(_ context.Context, _ []*message.Message, ds []*ackpolicy.Delivery) error {
			if slices.ContainsFunc(ds, func(d *ackpolicy.Delivery) bool { return d.Offset() == deadly }) {
				os.Exit(testkit.DeadlyExit)
			}
			for _, d := range ds {
				testkit.Write(testkit.EntryOf(testkit.Ended, d))
			}
			return nil
		}))
	return testkit.RunUntil(router, stop)
}

// A record whose handler ends the process is found, though it is in batches with others, and rejected after
// MaxDeliveries. All others are handled.
func TestCrashLoop(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes for some 15 s")
	}
	t.Parallel()
	const records = 300
	spec := crashSpec{Group: brokertest.Group(t), Topic: testkit.NewTopic(t, 1, testkit.OwnKeys(0, records)...)}
	ledger := &testkit.Ledger{}
	finished := func() bool {
		stored, err := brokertest.Committed(testkit.Shared.Addrs(), spec.Group, spec.Topic, 0)
		return err == nil && stored == records
	}
	deaths := 0
	for deaths < 9 && !testkit.StartChild(t, crashChildEnv, spec, ledger).Survives(t, finished) {
		deaths++
	}
	handled := map[int64]bool{}
	for _, e := range ledger.Entries(testkit.Ended) {
		handled[e.Offset] = true
	}
	letters := ledger.Entries(testkit.Stored)
	if len(handled) != records-1 || deaths > 5 {
		t.Errorf("%d records were handled, want %d; %d deaths", len(handled), records-1, deaths)
	}
	if len(letters) != 1 || letters[0].Offset != deadly || !strings.Contains(letters[0].Detail, ackpolicy.ErrProcessDied.Error()) {
		t.Errorf("letters: %+v", letters)
	}
	t.Logf("%d deaths", deaths)
}
