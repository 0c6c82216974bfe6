package letters_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
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
	text, err := json.Marshal(spec)
	testkit.Check(t, err)
	for range kills {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), letterChildEnv+"="+string(text), "KAFKA_BROKERS="+strings.Join(testkit.Shared.Addrs(), ","))
		var log bytes.Buffer
		child.Stderr = &log
		stdin, err := child.StdinPipe() // ends with us, if we are killed ourselves
		testkit.Check(t, err)
		defer stdin.Close()
		stdout, err := child.StdoutPipe()
		testkit.Check(t, err)
		testkit.Check(t, child.Start())
		stored := make(chan string, 1)
		go func() {
			line, _ := bufio.NewReader(stdout).ReadString('\n')
			stored <- line
		}()
		line := ""
		select {
		case line = <-stored:
		case <-time.After(testkit.Patience):
		}
		testkit.Check(t, child.Process.Kill())
		_ = child.Wait() // "signal: killed"
		if line != "stored 0\n" {
			t.Fatalf("the consumer said %q before it was killed, its log:\n%s", line, &log)
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

// letterChild tells of the first letter that is stored, and holds what follows it: the release of the record.
func letterChild(text string) int {
	var spec letterSpec
	err := json.Unmarshal([]byte(text), &spec)
	if err == nil {
		err = spec.consume()
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func (s letterSpec) consume() (err error) {
	if testkit.Shared, err = brokertest.Start(); err != nil {
		return err
	}
	cfg := s.config()
	cfg.Hooks.DeadLettered = func(e ackpolicy.DeadLetteredEvent) {
		if e.Err == nil {
			<-time.After(5 * cfg.CommitInterval) // a commit that does not wait for the letter would be stored by now
			fmt.Println("stored", e.Offset)
			select {}
		}
	}
	logger := watermill.NewStdLogger(false, false)
	sub, err := ackpolicy.NewSubscriber(cfg, logger)
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return err
	}
	router.AddMiddleware(ackpolicy.NackOnError.Middleware)
	router.AddConsumerHandler("handler", s.Topic, sub, func(*message.Message) error { return ackpolicy.RejectWith(testkit.ErrPoison) })
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test's process is gone
		os.Exit(1)
	}()
	return router.Run(context.Background())
}
