package letters_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// letterChildEnv makes the test binary the consumer of TestKillBetweenLetterAndCommit; its value is the letterSpec.
const letterChildEnv = "ACKPOLICY_LETTER_CHILD"

type letterSpec struct{ Group, Topic string }

// Killed with SIGKILL between the letter and the commit, a consumer leaves one letter more, and never one less.
func TestKillBetweenLetterAndCommit(t *testing.T) {
	t.Parallel()
	const records, kills = 4, 2
	spec := letterSpec{Group: brokertest.Group(t), Topic: testkit.NewTopic(t, 1, testkit.Keyed("k", "k", "k", "k")...)} // letters of one key are sent one by one
	for range kills {
		ledger := &testkit.Ledger{}
		child := testkit.StartChild(t, letterChildEnv, spec, ledger)
		testkit.Poll(func() bool { return ledger.Count(testkit.Stored) > 0 })
		child.Kill()
		if letters := ledger.Entries(testkit.Stored); len(letters) != 1 || letters[0].Offset != 0 {
			t.Fatalf("the consumer wrote %v before it was killed", letters)
		}
		if offset, err := brokertest.Committed(testkit.Shared.Addrs(), spec.Group, spec.Topic, 0); err != nil || offset > 0 {
			t.Errorf("stored after a kill: %d, %v", offset, err)
		}
	}

	s := testkit.Consume(t, spec.config(), spec.Topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, spec.Group, spec.Topic, 0, records)
	s.Stop()
	found := map[string]int{}
	for _, letter := range testkit.Letters(t, spec.Topic+".dlq", 0, records+kills) {
		found[testkit.Headers(letter)[ackpolicy.HeaderOffset]]++
	}
	for offset := range records {
		want := 1
		if offset == 0 {
			want += kills
		}
		if n := found[fmt.Sprint(offset)]; n != want {
			t.Errorf("%d letters of record %d, want %d", n, offset, want)
		}
	}
}

func (s letterSpec) config() ackpolicy.SubscriberConfig {
	cfg := testkit.Config(s.Group, testkit.DeadLetterTopic)
	// A static member comes back at once, where the group would wait out a dead one's session.
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.InstanceId = "static"
	return cfg
}

// Consume reports the first letter that is stored, and blocks what follows it: the release of the record.
func (s letterSpec) Consume(stop io.Reader) error {
	cfg := s.config()
	cfg.Hooks.DeadLettered = func(e ackpolicy.DeadLetteredEvent) {
		if e.Err == nil {
			<-time.After(5 * cfg.CommitInterval) // a commit that does not wait for the letter would be stored by now
			testkit.Write(testkit.Entry{Kind: testkit.Stored, RecordID: testkit.RecordID{Partition: e.Partition, Offset: e.Offset}})
			select {}
		}
	}
	router, sub, err := testkit.ChildRouter(cfg, ackpolicy.NackOnError.Middleware)
	if err != nil {
		return err
	}
	router.AddConsumerHandler("handler", s.Topic, sub, func(*message.Message) error { return ackpolicy.RejectWith(testkit.ErrPoison) })
	go func() {
		_, _ = io.Copy(io.Discard, stop) // until the test's process is gone
		os.Exit(1)
	}()
	return router.Run(context.Background())
}
