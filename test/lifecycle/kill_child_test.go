package lifecycle_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// killChildEnv makes the test binary the consumer that TestKill kills; its value is the killSpec.
const killChildEnv = "ACKPOLICY_KILL_CHILD"

// killSpec is what the consumer runs. AckFirst is with ConfirmFirst.
type killSpec struct {
	Policy               ackpolicy.Policy
	ByKey                bool
	Instance             string
	Group, Topic, Ledger string
}

func (s killSpec) name() string {
	name, order := s.Policy.String(), "partition"
	if s.Policy == ackpolicy.AckFirst {
		name += " with ConfirmFirst"
	}
	if s.ByKey {
		order = "key"
	}
	if s.Instance != "" {
		order += ", static member"
	}
	return name + " by " + order
}

func (s killSpec) middleware() message.HandlerMiddleware {
	return ackpolicy.Middleware{Policy: s.Policy, ConfirmFirst: s.Policy == ackpolicy.AckFirst}.Middleware
}

func (s killSpec) maxInFlight() int {
	if s.ByKey {
		return 16
	}
	return 1
}

// lanes is how many records of a partition may be handled at once.
func (s killSpec) lanes() int64 {
	if s.ByKey {
		return killKeys
	}
	return 1
}

func (s killSpec) config() ackpolicy.SubscriberConfig {
	return testkit.Config(s.Group, func(c *ackpolicy.SubscriberConfig) {
		c.MaxUncommitted = 30
		if s.ByKey {
			c.Ordering, c.MaxInFlight = ackpolicy.OrderByKey, s.maxInFlight()
		}
		group := &c.Kafka.OverwriteSaramaConfig.Consumer.Group
		group.Session.Timeout = 2 * time.Second // the dead member's partitions are free after it
		group.InstanceId = s.Instance
	})
}

// fails tells which records have handlers that fail, the first time.
func (s killSpec) fails(offset int64, attempt int) bool {
	switch s.Policy {
	case ackpolicy.RejectOnError, ackpolicy.Ack, ackpolicy.NackOnError:
		return offset%11 == 3 && attempt == 1
	}
	return false
}

// consumer is what a child process of a test runs.
type consumer interface {
	consume(until io.Reader) error
}

// child consumes until its standard input ends, as it does when the test's process is gone.
func child[S consumer](text string) int {
	var spec S
	err := json.Unmarshal([]byte(text), &spec)
	if err == nil {
		testkit.Shared, err = brokertest.Start()
	}
	if err == nil {
		err = spec.consume(os.Stdin)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (s killSpec) consume(until io.Reader) error {
	ledger, err := os.OpenFile(s.Ledger, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	write := func(kind string, partition int32, offset int64, attempt int) {
		// One system call a line: what was written survives the process.
		if _, err := fmt.Fprintf(ledger, "%s %d %d %d\n", kind, partition, offset, attempt); err != nil {
			panic(err)
		}
	}
	logger := watermill.NewStdLogger(false, false)
	cfg := s.config()
	cfg.Hooks.Assigned = func(e ackpolicy.AssignedEvent) { write("assigned", e.Partition, e.Start, 0) }
	sub, err := ackpolicy.NewSubscriber(cfg, logger)
	if err != nil {
		return err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return err
	}
	batches := &batcher{cumulative: !s.ByKey, refused: func(d *ackpolicy.Delivery) {
		write("refused", d.Partition(), d.Offset(), d.Attempt())
	}}
	router.AddMiddleware(s.middleware())
	router.AddConsumerHandler("handler", s.Topic, sub, func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		write("start", d.Partition(), d.Offset(), d.Attempt())
		<-time.After(time.Duration(1+(d.Offset()*37+int64(d.Partition())*11)%10) * time.Millisecond)
		if s.fails(d.Offset(), d.Attempt()) {
			write("fail", d.Partition(), d.Offset(), d.Attempt())
			return testkit.ErrBoom
		}
		write("end", d.Partition(), d.Offset(), d.Attempt())
		if s.Policy == ackpolicy.Manual {
			batches.add(d)
		}
		return nil
	})
	return runUntil(router, until)
}

// runUntil runs a Router until a reader ends.
func runUntil(router *message.Router, end io.Reader) error {
	go func() {
		_, _ = io.Copy(io.Discard, end)
		_ = router.Close()
	}()
	return router.Run(context.Background())
}
