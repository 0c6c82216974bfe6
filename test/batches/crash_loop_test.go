package batches_test

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// crashChildEnv makes the test binary the consumer of TestCrashLoop; its value is the crashSpec.
const crashChildEnv = "ACKPOLICY_BATCHES_CRASH_CHILD"

const (
	deadly     = 150
	deadlyExit = 42
)

// crashSpec is what the consumer runs. Its handler ends the process if record deadly is in the batch.
type crashSpec struct{ Group, Topic string }

// storedLetters writes letters into the ledger.
type storedLetters struct{}

func (storedLetters) Send(_ context.Context, _ *sarama.ConsumerMessage, l ackpolicy.Letter) error {
	testkit.Write(testkit.Entry{
		Kind: testkit.Stored, RecordID: testkit.RecordID{Partition: l.Partition, Offset: l.Offset},
		Attempt: l.Attempts, Detail: l.Reason.Error(),
	})
	return nil
}

// Consume implements testkit.Consumer.
func (s crashSpec) Consume(stop io.Reader) error {
	logger := watermill.NewStdLogger(false, false)
	cfg := testkit.Config(s.Group, testkit.Ordering(ackpolicy.OrderByKey, 0))
	cfg.MaxDeliveries, cfg.DeadLetter = 3, storedLetters{}
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Session.Timeout = time.Second
	sub, err := ackpolicy.NewSubscriber(cfg, logger)
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return err
	}
	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	router.AddConsumerHandler("handler", s.Topic, sub.Batches(ackpolicy.BatchConfig{Size: 100, Wait: 10 * time.Millisecond}),
		(&calls{}).recorded(func(_ context.Context, _ []*message.Message, ds []*ackpolicy.Delivery) error {
			if slices.ContainsFunc(ds, func(d *ackpolicy.Delivery) bool { return d.Offset() == deadly }) {
				os.Exit(deadlyExit)
			}
			for _, d := range ds {
				testkit.Write(testkit.Entry{Kind: testkit.Ended, RecordID: testkit.RecordID{Partition: d.Partition(), Offset: d.Offset()}})
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
	deaths := 0
	for ; deaths < 9; deaths++ {
		child := testkit.StartChild(t, crashChildEnv, spec, ledger)
		ended := false
		testkit.Eventually(t, "it dies, or all is committed", func() bool {
			select {
			case <-child.Ended():
				ended = true
			default:
			}
			stored, err := brokertest.Committed(testkit.Shared.Addrs(), spec.Group, spec.Topic, 0)
			return ended || err == nil && stored == records
		})
		child.Stop()
		code := child.ExitCode()
		if code == 0 {
			break
		}
		if code != deadlyExit {
			t.Fatalf("exit code %d", code)
		}
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
