package lifecycle_test

import (
	"io"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// killChildEnv makes the test binary the consumer that TestKill kills; its value is the killSpec.
const killChildEnv = "ACKPOLICY_KILL_CHILD"

// killSpec is what the consumer runs. AckFirst is with ConfirmFirst.
type killSpec struct {
	Policy       ackpolicy.Policy
	ByKey        bool
	Instance     string
	Group, Topic string
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

// fails reports which records have handlers that fail, the first time.
func (s killSpec) fails(offset int64, attempt int) bool {
	switch s.Policy {
	case ackpolicy.RejectOnError, ackpolicy.Ack, ackpolicy.NackOnError:
		return offset%11 == 3 && attempt == 1
	}
	return false
}

// Consume implements testkit.Consumer.
func (s killSpec) Consume(stop io.Reader) error {
	cfg := s.config()
	cfg.Hooks.Assigned = testkit.WriteAssigned
	router, sub, err := testkit.ChildRouter(cfg, s.middleware())
	if err != nil {
		return err
	}
	batches := newBatcher(!s.ByKey, func(d *ackpolicy.Delivery) { testkit.Write(testkit.EntryOf(testkit.Refused, d)) })
	router.AddConsumerHandler("handler", s.Topic, sub, func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		testkit.Write(testkit.EntryOf(testkit.Began, d))
		<-time.After(time.Duration(1+(d.Offset()*37+int64(d.Partition())*11)%10) * time.Millisecond)
		if s.fails(d.Offset(), d.Attempt()) {
			kind := testkit.Ended
			if s.Policy == ackpolicy.NackOnError {
				kind = testkit.Failed
			}
			testkit.Write(testkit.EntryOf(kind, d))
			return testkit.ErrBoom
		}
		testkit.Write(testkit.EntryOf(testkit.Ended, d))
		if s.Policy == ackpolicy.Manual {
			batches.Add(d)
		}
		return nil
	})
	return testkit.RunUntil(router, stop)
}
