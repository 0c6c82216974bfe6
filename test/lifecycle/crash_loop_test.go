package lifecycle_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
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
const crashChildEnv = "ACKPOLICY_CRASH_CHILD"

type crashSpec struct {
	Group, Topic, Ledger string
	MaxDeliveries        int
	Deadly               string // the value of the record whose handler ends the process; "": none
}

// What the child writes of each handler that returned, of each letter, and of its end.
type crashLine struct {
	Kind      string // "handled", "letter"
	Partition int32
	Offset    int64
	Attempts  int
	Reason    string
}

func (s crashSpec) config() ackpolicy.SubscriberConfig {
	return testkit.Config(s.Group, func(c *ackpolicy.SubscriberConfig) {
		c.Ordering, c.MaxInFlight = ackpolicy.OrderByKey, 64
		c.MaxDeliveries = s.MaxDeliveries
		c.CommitInterval = time.Second // the default
		c.Kafka.OverwriteSaramaConfig.Consumer.Group.Session.Timeout = time.Second
	})
}

type crashLetters func(crashLine)

func (w crashLetters) Send(_ context.Context, _ *sarama.ConsumerMessage, l ackpolicy.Letter) error {
	w(crashLine{Kind: "letter", Partition: l.Partition, Offset: l.Offset, Attempts: l.Attempts, Reason: l.Reason.Error()})
	return nil
}

func (s crashSpec) consume(until io.Reader) error {
	ledger, err := os.OpenFile(s.Ledger, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	write := func(l crashLine) {
		line, _ := json.Marshal(l)
		if _, err := ledger.Write(append(line, '\n')); err != nil { // one system call
			panic(err)
		}
	}
	logger := watermill.NewStdLogger(false, false)
	cfg := s.config()
	cfg.DeadLetter = crashLetters(write)
	sub, err := ackpolicy.NewSubscriber(cfg, logger)
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return err
	}
	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	router.AddConsumerHandler("handler", s.Topic, sub, func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		if string(msg.Payload) == s.Deadly {
			os.Exit(deadlyExit)
		}
		<-time.After(2 * time.Millisecond)
		write(crashLine{Kind: "handled", Partition: d.Partition(), Offset: d.Offset()})
		return nil
	})
	return runUntil(router, until)
}

const deadlyExit = 42

func (s crashSpec) read(t *testing.T) (lines []crashLine) {
	t.Helper()
	text, err := os.ReadFile(s.Ledger)
	if !os.IsNotExist(err) {
		testkit.Check(t, err)
	}
	for line := range strings.Lines(string(text)) {
		var l crashLine
		if json.Unmarshal([]byte(line), &l) == nil { // the last one may be cut
			lines = append(lines, l)
		}
	}
	return lines
}

// run starts the consumer and waits for its end, or for done. It returns false if it was the deadly record's.
func (s crashSpec) run(t *testing.T, done func() bool) (lived bool) {
	t.Helper()
	text, err := json.Marshal(s)
	testkit.Check(t, err)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), crashChildEnv+"="+string(text), "KAFKA_BROKERS="+strings.Join(testkit.Shared.Addrs(), ","))
	log, err := os.OpenFile(s.Ledger+".log", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	testkit.Check(t, err)
	defer log.Close()
	child.Stdout, child.Stderr = log, log
	stdin, err := child.StdinPipe() // ends with us, if we are killed ourselves
	testkit.Check(t, err)
	testkit.Check(t, child.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = child.Wait()
	}()
	if !testkit.PollFor(2*testkit.Patience, func() bool {
		select {
		case <-ended:
			return true
		default:
			return done()
		}
	}) {
		t.Error("it neither died nor came to an end")
	}
	_ = stdin.Close() // it may be closed already: the child is gone
	<-ended
	switch code := child.ProcessState.ExitCode(); code {
	case 0:
		return true
	case deadlyExit:
		return false
	default:
		t.Fatalf("exit code %d", code)
		return false
	}
}

// A record whose handler ends the process does not take the service down for ever: it is found, and rejected after
// MaxDeliveries. All others are handled.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	const records, deadly = 1000, 500
	for _, partitions := range []int32{1, 4} {
		t.Run(fmt.Sprint(partitions, " partitions"), func(t *testing.T) {
			t.Parallel()
			spec := crashSpec{
				Group: brokertest.Group(t), Topic: testkit.NewTopic(t, partitions), Ledger: t.TempDir() + "/ledger",
				MaxDeliveries: 3, Deadly: fmt.Sprint(deadly),
			}
			defer func() {
				if t.Failed() {
					text, _ := os.ReadFile(spec.Ledger + ".log")
					t.Logf("the end of the consumer's log:\n%s", text[max(0, len(text)-20_000):])
				}
			}()
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
			for !spec.run(t, finished) {
				if deaths++; deaths > 8 {
					t.Fatal("it goes on dying")
				}
			}
			times, letters, twice := map[testkit.RecordID]int{}, []crashLine{}, 0
			for _, l := range spec.read(t) {
				if l.Kind == "letter" {
					letters = append(letters, l)
				} else if times[testkit.RecordID{Partition: l.Partition, Offset: l.Offset}]++; times[testkit.RecordID{Partition: l.Partition, Offset: l.Offset}] == 2 {
					twice++
				}
			}
			if len(times) != records-1 {
				t.Errorf("%d records were handled, want %d", len(times), records-1)
			}
			if len(letters) != 1 || letters[0].Attempts != 3 || !strings.Contains(letters[0].Reason, ackpolicy.ErrProcessDied.Error()) {
				t.Errorf("letters: %+v", letters)
			}
			if deaths > 5 {
				t.Errorf("%d deaths", deaths)
			}
			t.Logf("%d deaths, %d of %d records handled twice", deaths, twice, records)
		})
	}
}
