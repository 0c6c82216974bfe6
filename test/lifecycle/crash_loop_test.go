package lifecycle_test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// crashChildEnv makes the test binary the consumer of TestCrashLoop; its value is the crashSpec.
const crashChildEnv = "ACKPOLICY_CRASH_CHILD"

type crashSpec struct {
	Group, Topic  string
	MaxDeliveries int
	Deadly        string // the value of the record whose handler ends the process; "": none
}

func (s crashSpec) config() ackpolicy.SubscriberConfig {
	return testkit.Config(s.Group, func(c *ackpolicy.SubscriberConfig) {
		c.Ordering, c.MaxInFlight = ackpolicy.OrderByKey, 64
		c.MaxDeliveries = s.MaxDeliveries
		c.CommitInterval = time.Second // the default
		c.Kafka.OverwriteSaramaConfig.Consumer.Group.Session.Timeout = time.Second
	})
}

// Consume implements testkit.Consumer.
func (s crashSpec) Consume(stop io.Reader) error {
	cfg := s.config()
	cfg.DeadLetter = testkit.WrittenLetters{}
	router, sub, err := testkit.ChildRouter(cfg, ackpolicy.NackOnError.Middleware)
	if err != nil {
		return err
	}
	router.AddConsumerHandler("handler", s.Topic, sub, func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		if string(msg.Payload) == s.Deadly {
			os.Exit(testkit.DeadlyExit)
		}
		<-time.After(2 * time.Millisecond)
		testkit.Write(testkit.EntryOf(testkit.Ended, d))
		return nil
	})
	return testkit.RunUntil(router, stop)
}

// A record whose handler ends the process does not take the service down forever: it is found, and rejected after
// MaxDeliveries. All others are handled.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	const records, deadly = 1000, 500
	for _, partitions := range []int32{1, 4} {
		t.Run(fmt.Sprint(partitions, " partitions"), func(t *testing.T) {
			t.Parallel()
			spec := crashSpec{
				Group: brokertest.Group(t), Topic: testkit.NewTopic(t, partitions),
				MaxDeliveries: 3, Deadly: fmt.Sprint(deadly),
			}
			ledger := &testkit.Ledger{}
			ends := map[int32]int64{}
			batches := map[int32][]brokertest.Record{}
			for i, r := range testkit.OwnKeys(0, records) {
				p := int32(i) % partitions
				batches[p] = append(batches[p], r)
				ends[p]++
			}
			for p, batch := range batches {
				testkit.Produce(t, spec.Topic, p, batch...)
			}
			finished := func() bool {
				for p, end := range ends {
					if got, err := brokertest.Committed(testkit.Shared.Addrs(), spec.Group, spec.Topic, p); err != nil || got != end {
						return false
					}
				}
				return true
			}
			deaths := 0
			for !testkit.StartChild(t, crashChildEnv, spec, ledger).Survives(t, finished) {
				if deaths++; deaths > 8 {
					t.Fatal("it keeps dying")
				}
			}
			times, letters, twice := map[testkit.RecordID]int{}, ledger.Entries(testkit.Stored), 0
			for _, e := range ledger.Entries(testkit.Ended) {
				if times[e.RecordID]++; times[e.RecordID] == 2 {
					twice++
				}
			}
			if len(times) != records-1 {
				t.Errorf("%d records were handled, want %d", len(times), records-1)
			}
			if len(letters) != 1 || letters[0].Attempt != 3 || !strings.Contains(letters[0].Detail, ackpolicy.ErrProcessDied.Error()) {
				t.Errorf("letters: %+v", letters)
			}
			if deaths > 5 {
				t.Errorf("%d deaths", deaths)
			}
			t.Logf("%d deaths, %d of %d records handled twice", deaths, twice, records)
		})
	}
}
