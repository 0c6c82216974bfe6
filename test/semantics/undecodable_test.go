package semantics_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// An undecodable record is not lost and not committed past; it is tried again, and the log names it.
func TestUndecodable(t *testing.T) {
	t.Parallel()
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	var tried atomic.Int32
	var fixed atomic.Bool
	var reported atomic.Pointer[ackpolicy.UndecodableEvent]
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.Unordered, 4))
	cfg.Kafka.Unmarshaler = testkit.Refusing{While: func() bool { tried.Add(1); return !fixed.Load() }}
	cfg.Hooks.Undecodable = func(e ackpolicy.UndecodableEvent) { reported.Store(&e) }
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.Ack.Middleware)
	testkit.Eventually(t, "a second try", func() bool { return tried.Load() >= 2 })
	s.Wait(t, 2)
	testkit.WantCommitted(t, group, topic, 0, 0)
	if e := reported.Load(); e == nil || e.Topic != topic || e.Partition != 0 || e.Offset != 0 || e.Err == nil {
		t.Errorf("the hook got %+v", e)
	}
	if len(testkit.Containing(s.Log.At("error"), topic, "partition=0", "offset=0", "no such schema")) == 0 {
		t.Errorf("not in the log: %v", s.Log.At("error"))
	}
	fixed.Store(true)
	testkit.WaitCommitted(t, group, topic, 0, 3)
	s.Stop()
}

// However short the pause between attempts, an undecodable record makes few lines, and one when it is finally decoded.
func TestUndecodableInTheLog(t *testing.T) {
	t.Parallel()
	const attempts = 200
	group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, testkit.Numbered(3)...)
	var tried atomic.Int32
	cfg := testkit.Config(group, testkit.Ordering(ackpolicy.Unordered, 4))
	cfg.Kafka.Unmarshaler = testkit.Refusing{While: func() bool { return tried.Add(1) <= attempts }}
	cfg.Backoff = func(int, error) time.Duration { return time.Millisecond }
	began := time.Now()
	s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.Ack.Middleware)
	testkit.WaitCommitted(t, group, topic, 0, 3)
	lines, most := testkit.Containing(s.Log.At("error"), "cannot be decoded"), 1+int(time.Since(began)/(10*time.Second))
	if n := len(lines); n == 0 || n > most {
		t.Errorf("%d error lines of %d attempts, want 1 to %d", n, attempts, most)
	} else if len(testkit.Containing(lines[:1], "kafka_partition=0", "kafka_partition_offset=0", "attempt=1 ", "retry_in=1ms")) == 0 || strings.Contains(lines[0], "failing_for") {
		t.Errorf("the first line: %s", lines[0])
	}
	if len(testkit.Containing(s.Log.At("info"), "Record decoded", "kafka_partition=0", "kafka_partition_offset=0", "failing_for=")) != 1 {
		t.Error("no line, or several, that it is over")
	}
	s.Stop()
}

func TestOnUndecodable(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		on     ackpolicy.Undecodable
		letter bool
		stored int64
	}{
		"auto with a dead letter":      {ackpolicy.UndecodableAuto, true, 3},
		"auto without":                 {ackpolicy.UndecodableAuto, false, 1},
		"retry with a dead letter":     {ackpolicy.UndecodableRetry, true, 1},
		"reject with a dead letter":    {ackpolicy.UndecodableReject, true, 3},
		"reject without a dead letter": {ackpolicy.UndecodableReject, false, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := testkit.NewTopic(t, 1, brokertest.Values("good", "bad", "good")...)
			cfg := testkit.Config(brokertest.Group(t), testkit.Ordering(ackpolicy.Unordered, 2))
			cfg.Kafka.Unmarshaler = testkit.BadValues{}
			cfg.OnUndecodable = test.on
			if test.letter {
				testkit.DeadLetterTopic(&cfg)
			}
			s := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			s.Wait(t, 2)
			if test.stored == 1 {
				testkit.Eventually(t, "a second try", func() bool { return len(testkit.Containing(s.Log.At("error", "debug"), "cannot be decoded")) > 1 })
			}
			testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, test.stored)
			s.Stop()
			testkit.WantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, test.stored)
			if test.letter && test.stored == 3 {
				letter := testkit.Letters(t, topic+".dlq", 0, 1)[0]
				if reason := testkit.Headers(letter)[ackpolicy.HeaderReason]; string(letter.Value) != "bad" || !strings.Contains(reason, "poison") {
					t.Errorf("letter %q for %q", letter.Value, reason)
				}
			}
		})
	}
}
