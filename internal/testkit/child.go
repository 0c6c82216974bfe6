package testkit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// Consumer is what a Child runs. It returns when stop ends.
type Consumer interface {
	Consume(stop io.Reader) error
}

// RunChild makes the test binary a consumer, if the environment variable holds one. TestMain calls it first.
func RunChild[C Consumer](env string) {
	text, ok := os.LookupEnv(env)
	if !ok {
		return
	}
	var c C
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		Shared, err = brokertest.Start()
	}
	if err == nil {
		err = c.Consume(os.Stdin) // which ends with the test's process, too
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Write writes an entry into the ledger of the test whose child this process is. One system call writes it, so that it
// outlives the process.
func Write(e Entry) {
	if err := e.write(os.Stdout); err != nil {
		panic(err)
	}
}

// WriteAssigned writes where a partition starts. It is a Hooks.Assigned.
func WriteAssigned(e ackpolicy.AssignedEvent) {
	Write(Entry{Kind: Assigned, RecordID: RecordID{e.Partition, e.Start}})
}

// WrittenLetters is a DeadLetter that writes its letters.
type WrittenLetters struct{}

// Send implements ackpolicy.DeadLetter.
func (WrittenLetters) Send(_ context.Context, _ *sarama.ConsumerMessage, l ackpolicy.Letter) error {
	Write(Entry{Kind: Stored, RecordID: RecordID{l.Partition, l.Offset}, Attempt: l.Attempts, Detail: l.Reason.Error()})
	return nil
}

// ChildRouter makes the Router of a Child, and its Subscriber. Their log is the process's standard error.
func ChildRouter(cfg ackpolicy.SubscriberConfig, mw ...message.HandlerMiddleware) (*message.Router, *ackpolicy.Subscriber, error) {
	logger := watermill.NewStdLogger(false, false)
	sub, err := ackpolicy.NewSubscriber(cfg, logger)
	if err != nil {
		return nil, nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, nil, err
	}
	router.AddMiddleware(mw...)
	return router, sub, nil
}

// RunUntil runs a Router until a reader ends.
func RunUntil(router *message.Router, stop io.Reader) error {
	go func() {
		_, _ = io.Copy(io.Discard, stop)
		_ = router.Close()
	}()
	return router.Run(context.Background())
}

// Child is the test binary as another process.
type Child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{}
}

// StartChild starts a process in which RunChild finds the consumer. What that writes is appended to the ledger. Its log
// is shown if the test fails.
func StartChild(t testing.TB, env string, consumer any, ledger *Ledger) *Child {
	t.Helper()
	cmd, err := brokertest.Self(context.Background(), env, consumer)
	Check(t, err)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	Check(t, err)
	c := &Child{cmd: cmd, ended: make(chan struct{})}
	c.cmd.Env = append(c.cmd.Env, "KAFKA_BROKERS="+strings.Join(Shared.Addrs(), ","))
	c.cmd.Stderr = log
	c.stdin, err = c.cmd.StdinPipe()
	Check(t, err)
	stdout, err := c.cmd.StdoutPipe()
	Check(t, err)
	Check(t, c.cmd.Start())
	var bad error
	go func() {
		defer close(c.ended)
		bad = ledger.read(stdout)
		_ = c.cmd.Wait()
	}()
	t.Cleanup(func() {
		c.Kill()
		if bad != nil {
			t.Error("the child's ledger:", bad)
		}
		_ = log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the end of the child's log:\n%s", text[max(0, len(text)-20_000):])
		}
	})
	return c
}

// Stop has the process end as it does at a deploy. It does not wait.
func (c *Child) Stop() { _ = c.stdin.Close() }

// Kill kills the process, if it has not ended, and waits for its end.
func (c *Child) Kill() {
	_ = c.cmd.Process.Kill()
	<-c.ended
}

// Pause stops the process where it is, until Resume.
func (c *Child) Pause() { _ = c.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume has a paused process go on.
func (c *Child) Resume() { _ = c.cmd.Process.Signal(syscall.SIGCONT) }

// DeadlyExit is the exit code of a process that a record's handler ends.
const DeadlyExit = 42

// Survives reports whether the process lives until done returns true, and ends well then. It returns false if the process
// ended with DeadlyExit.
func (c *Child) Survives(t testing.TB, done func() bool) bool {
	t.Helper()
	if !PollFor(2*Patience, func() bool {
		select {
		case <-c.ended:
			return true
		default:
			return done()
		}
	}) {
		t.Error("it neither died nor came to an end")
	}
	c.Stop()
	switch code := c.ExitCode(); code {
	case 0:
		return true
	case DeadlyExit:
		return false
	default:
		t.Fatalf("exit code %d", code)
		return false
	}
}

// Ended is closed once the process has ended and all that it wrote is in the ledger.
func (c *Child) Ended() <-chan struct{} { return c.ended }

// ExitCode returns how the process ended: -1 if it was killed.
func (c *Child) ExitCode() int {
	<-c.ended
	return c.cmd.ProcessState.ExitCode()
}
