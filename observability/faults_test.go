package observability_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/components/delay"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

const (
	// speed is how much faster the clock of the rules runs here: an hour takes half a minute. What the library itself
	// waits for, such as the 10 s after which an outage makes it not ready, takes as long as ever.
	speed    = 120
	scraping = time.Minute / speed
)

// liveFault is what goes wrong in a service.
type liveFault struct {
	kfake  bool                              // only the broker in the process makes it
	cause  func(f *troubled) (repair func()) // what goes wrong; repair may be nil: closing fixed is enough, or it is over by itself
	alerts []string                          // fire while it lasts
	after  []string                          // fire when it is fixed
}

var byKey = testkit.Ordering(ackpolicy.OrderByKey, 4)

// liveFaults has at least one fault for each alert, and things that are none.
var liveFaults = map[string]liveFault{
	"a handler hangs": {alerts: []string{"AckpolicyHandlerSlow", "AckpolicyNotReady"}, cause: func(f *troubled) func() {
		f.feed(20)
		f.consume(ackpolicy.NackOnError.Middleware, f.until, byKey)
		return nil
	}},
	"a handler hangs, and its partition waits": {alerts: []string{"AckpolicyHandlerSlow", "AckpolicyNotReady", "AckpolicyPartitionStalled"}, cause: func(f *troubled) func() {
		f.feed(20)
		f.consume(ackpolicy.NackOnError.Middleware, f.until)
		return nil
	}},
	"a record fails each time": {alerts: []string{"AckpolicyPoison"}, cause: func(f *troubled) func() {
		f.feed(20)
		f.consume(ackpolicy.NackOnError.Middleware, f.fail, byKey, func(c *ackpolicy.SubscriberConfig) {
			c.Backoff = ackpolicy.ExponentialBackoff{Max: 5 * time.Second}.Delay
		})
		return nil
	}},
	"a partition waits behind a record": {alerts: []string{"AckpolicyPartitionStalled"}, cause: func(f *troubled) func() {
		f.feed(20)
		f.consume(ackpolicy.NackOnError.Middleware, func(_ *message.Message, d *ackpolicy.Delivery) error {
			if d.Attempt() > 1 {
				return nil
			}
			return ackpolicy.NackAfter(time.Hour)
		})
		return func() { testkit.Check(f.t, f.sub.Retry("ada", f.topic, f.partition, f.offset)) }
	}},
	"MaxUncommitted is reached": {alerts: []string{"AckpolicyBlocked", "AckpolicyNotReady", "AckpolicyPartitionStalled", "AckpolicyPendingForgotten"}, cause: func(f *troubled) func() {
		f.feed(20)
		f.consume(ackpolicy.Manual.Middleware, f.later, byKey, func(c *ackpolicy.SubscriberConfig) { c.MaxUncommitted = 1 })
		return nil
	}},
	"a partition is paused": {alerts: []string{"AckpolicyPaused"}, cause: func(f *troubled) func() {
		f.feed(5)
		f.consume(ackpolicy.Ack.Middleware, testkit.Succeed)
		testkit.Check(f.t, f.sub.Pause("ada", f.topic, f.partition))
		return func() { testkit.Check(f.t, f.sub.Resume("ada", f.topic, f.partition)) }
	}},
	"a broker is away": {alerts: []string{"AckpolicyKafkaFailing", "AckpolicyNotConsuming", "AckpolicyNotReady"}, cause: func(f *troubled) func() {
		var network brokertest.Network
		f.consume(ackpolicy.Ack.Middleware, testkit.Succeed, func(c *ackpolicy.SubscriberConfig) { network.Use(c.Kafka.OverwriteSaramaConfig) })
		f.scraped("the healthy service")
		network.Cut()
		return network.Heal
	}},
	"fetching fails": {kfake: true, alerts: []string{"AckpolicyKafkaFailing", "AckpolicyNotReady"}, cause: func(f *troubled) func() {
		f.consume(ackpolicy.Ack.Middleware, testkit.Succeed)
		f.scraped("the healthy service")
		return f.broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.KafkaStorageError, Count: -1}).Remove
	}},
	"commits fail": {kfake: true, alerts: []string{"AckpolicyCommitsFailing", "AckpolicyKafkaFailing", "AckpolicyNotReady"}, cause: func(f *troubled) func() {
		f.produce(testkit.Numbered(1)...)
		refused := testkit.RefuseCommits(f.broker, -1)
		f.consume(ackpolicy.Ack.Middleware, testkit.Succeed)
		return refused.Remove
	}},
	"a record was left unsettled": {alerts: []string{"AckpolicyPendingForgotten"}, cause: func(f *troubled) func() {
		f.feed(20)
		f.consume(ackpolicy.Manual.Middleware, f.later, byKey)
		return nil
	}},
	"another process takes over the static id": {alerts: []string{"AckpolicyNotLive", "AckpolicyNotReady"}, cause: func(f *troubled) func() {
		f.consume(ackpolicy.Ack.Middleware, testkit.Succeed, func(c *ackpolicy.SubscriberConfig) {
			c.Kafka.OverwriteSaramaConfig.Consumer.Group.InstanceId = "static"
		})
		f.scraped("the healthy service")
		f.join("static-"+f.topic, nil)
		return func() { testkit.Check(f.t, f.sub.Close()) } // as a restart does
	}},
	"another member does not leave a rebalance": {alerts: []string{"AckpolicyNotConsuming", "AckpolicyNotReady"}, cause: func(f *troubled) func() {
		f.join("", f.fixed)
		f.consume(ackpolicy.Ack.Middleware, testkit.Succeed)
		return nil
	}},
	"a record is rejected": {alerts: []string{"AckpolicyRecordsRejected"}, cause: func(f *troubled) func() {
		f.produce(testkit.Numbered(1)...)
		f.consume(ackpolicy.RejectOnError.Middleware, f.fail)
		return nil
	}},
	"dead letters are not stored": {alerts: []string{"AckpolicyLettersNotStored", "AckpolicyRecordsRejected"}, cause: func(f *troubled) func() {
		f.feed(20)
		f.consume(ackpolicy.RejectOnError.Middleware, f.fail, byKey, func(c *ackpolicy.SubscriberConfig) {
			c.DeadLetter = destination{f, errors.New("the dead letter topic has no leader")}
		})
		return nil
	}},
	"dead letters are given up": {alerts: []string{"AckpolicyLettersGivenUp", "AckpolicyRecordsRejected"}, cause: func(f *troubled) func() {
		f.produce(testkit.Numbered(1)...)
		f.consume(ackpolicy.RejectOnError.Middleware, f.fail, func(c *ackpolicy.SubscriberConfig) {
			c.DeadLetter, c.OnUnstorable = destination{f, permanent{errors.New("the letter is too large")}}, ackpolicy.UnstorableGiveUp
		})
		return nil
	}},
	"retention was shorter than the downtime": {alerts: []string{"AckpolicyRecordsLost"}, cause: func(f *troubled) func() {
		f.produce(testkit.Numbered(20)...)
		testkit.Check(f.t, brokertest.ResetOffset(f.broker.Addrs(), f.group, f.topic, f.partition, f.offset))
		testkit.Check(f.t, brokertest.DeleteRecords(f.broker.Addrs(), f.topic, 0, 10))
		f.consume(ackpolicy.Ack.Middleware, testkit.Succeed)
		return nil
	}},
	"commits of ConfirmFirst have no response, and the process stops": {kfake: true, alerts: []string{
		"AckpolicyCommitsFailing", "AckpolicyKafkaFailing", "AckpolicyNotReady", "AckpolicyPartitionStalled", "AckpolicyUnconfirmed",
	}, cause: func(f *troubled) func() {
		f.consume(testkit.ConfirmFirst, testkit.Succeed, testkit.DrainTimeout(100*time.Millisecond))
		f.scraped("the healthy service")
		sent, fake := make(chan struct{}), f.broker.Kfake()
		cut := sync.OnceFunc(func() { close(sent) })
		fake.ControlKey(int16(kmsg.OffsetCommit), func(kmsg.Request) (kmsg.Response, error, bool) {
			fake.KeepControl()
			if f.isFixed() {
				return nil, nil, false
			}
			cut()
			return nil, errors.New("the connection is cut"), true
		})
		f.produce(testkit.Numbered(1)...)
		testkit.Await(f.t, "the commit", sent)
		testkit.Eventually(f.t, "all alerts of a running service", func() bool { return len(f.prom.everFired(f.group)) == 4 })
		testkit.Check(f.t, f.sub.Close())
		return nil
	}},
	"a record cannot be decoded": {alerts: []string{"AckpolicyUndecodable"}, cause: func(f *troubled) func() {
		f.feed(20)
		f.consume(ackpolicy.NackOnError.Middleware, testkit.Succeed, byKey, func(c *ackpolicy.SubscriberConfig) { c.Kafka.Unmarshaler = unmarshaler{f} })
		return nil
	}},
	"a batch cannot be decoded": {kfake: true, alerts: []string{"AckpolicyFetchStalled", "AckpolicyNotReady"}, after: []string{"AckpolicyRecordsLost"}, cause: func(f *troubled) func() {
		testkit.ProduceUndecodable(f.t, f.broker, f.topic, 0)
		f.produce(testkit.Numbered(1)...)
		f.consume(ackpolicy.Ack.Middleware, testkit.Succeed)
		seam.LookEvery(f.sub, time.Second)
		return func() { testkit.Check(f.t, brokertest.DeleteRecords(f.broker.Addrs(), f.topic, 0, 1)) }
	}},
	"more comes than is handled": {alerts: []string{"AckpolicyLagGrows"}, cause: func(f *troubled) func() {
		f.feed(500)
		f.consume(func(h message.HandlerFunc) message.HandlerFunc {
			return func(msg *message.Message) ([]*message.Message, error) {
				if !f.isFixed() {
					time.Sleep(20 * time.Millisecond)
				}
				return ackpolicy.Ack.Middleware(h)(msg)
			}
		}, testkit.Succeed)
		return nil
	}},

	"not a fault: a record is nacked for an hour": {cause: func(f *troubled) func() {
		f.produce(testkit.Numbered(2)...)
		f.consume(ackpolicy.NackOnError.Middleware, func(*message.Message, *ackpolicy.Delivery) error { return ackpolicy.NackAfter(time.Hour) }, byKey)
		return nil
	}},
	"not a fault: a record is delayed, and its partition with it": {cause: func(f *troubled) func() {
		later := message.NewMessage("", nil)
		delay.Message(later, delay.For(time.Hour))
		records := testkit.Numbered(3)
		for key, value := range later.Metadata {
			records[0].Headers = append(records[0].Headers, sarama.RecordHeader{Key: []byte(key), Value: []byte(value)})
		}
		f.produce(records...)
		f.consume(ackpolicy.NackOnError.Middleware, testkit.Succeed)
		return nil
	}},
}

// Each alert fires for its fault, in a service that runs, and no other does; and all of them are over when it is. The
// clock of the rules runs 120 times as fast.
func TestAlertsOfServices(t *testing.T) {
	t.Parallel()
	prom := startPrometheus(t, scraping, speed)
	tried := map[string]bool{}
	for name, fault := range liveFaults {
		for _, alert := range fault.alerts {
			tried[alert] = true
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTroubled(t, prom)
			fix := sync.OnceFunc(func() { close(f.fixed) })
			t.Cleanup(fix)
			if fault.kfake {
				f.broker = brokertest.NewFake(t)
			}
			testkit.Check(t, brokertest.CreateTopic(f.broker.Addrs(), f.topic, int32(f.partitions)))
			began := time.Now()
			repair := fault.cause(f)
			if len(fault.alerts) == 0 {
				f.scraped("the service")
				from := prom.evaluations()
				testkit.Eventually(t, "twenty minutes of the rules", func() bool { return prom.evaluations() > from+int(20*time.Minute/speed/scraping) })
			}
			most := 3 * testkit.Patience // a pause takes half a minute, on an idle machine
			if !testkit.PollFor(most, func() bool { return len(prom.everFired(f.group)) >= len(fault.alerts) }) {
				t.Errorf("not all fired in %v", most)
			}
			slices.Sort(fault.alerts)
			if fired := prom.everFired(f.group); !slices.Equal(fired, fault.alerts) {
				t.Errorf("fired: %v, want %v", fired, fault.alerts)
			}
			t.Logf("after %v: %v", time.Since(began).Round(100*time.Millisecond), prom.everFired(f.group))
			fix()
			if repair != nil {
				repair()
			}
			all := slices.Sorted(slices.Values(append(slices.Clone(fault.alerts), fault.after...)))
			if !testkit.Poll(func() bool { return len(prom.everFired(f.group)) >= len(all) && len(prom.firing(f.group)) == 0 }) {
				t.Errorf("still firing: %v", prom.firing(f.group))
			}
			if fired := prom.everFired(f.group); !slices.Equal(fired, all) {
				t.Errorf("fired by its end: %v, want %v", fired, all)
			}
		})
	}
	for _, r := range alerts(t) {
		if !tried[r.Alert] {
			t.Errorf("%s: no fault is tried", r.Alert)
		}
	}
}
