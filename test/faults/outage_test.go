package faults_test

import (
	"flag"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// outageFor is how long the outages of these tests last.
var outageFor = flag.Duration("outage", 12*time.Second, "how long the outages of TestOutage last")

// An outage makes a few lines, however many partitions it stops and whatever of Kafka fails: the first comes soon,
// and the last one says that it is over and how long it took.
func TestOutageInTheLog(t *testing.T) {
	t.Parallel()
	const partitions = 16
	for _, kind := range []string{"group", "group with slow handlers", "no group", "only fetching", "only fetching, with an error", "only commits"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.New(t)
			if strings.HasPrefix(kind, "only") {
				broker = brokertest.NewFake(t)
			}
			topic, group := brokertest.Topic(t), brokertest.Group(t)
			testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, partitions))
			produce := func() {
				for p := range int32(partitions) {
					_, err := brokertest.Produce(broker.Addrs(), topic, p, testkit.Numbered(2)...)
					testkit.Check(t, err)
				}
			}
			if kind == "no group" {
				group = ""
			}
			network := &brokertest.Network{}
			cfg := testkit.Config(group, func(c *ackpolicy.SubscriberConfig) { c.Kafka.Brokers = broker.Addrs() })
			network.Use(cfg.Kafka.OverwriteSaramaConfig)
			produce()
			s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				if kind == "group with slow handlers" && d.Offset()%2 == 1 {
					select {
					case <-time.After(3 * time.Second):
					case <-msg.Context().Done():
					}
				}
				return nil
			}, ackpolicy.NackOnError.Middleware)
			s.Wait(t, 2*partitions)
			lines := func() []string { return testkit.Containing(s.Log.At("error", "info"), "provider=kafka") }
			before := len(lines())

			heal := network.Heal
			fault := func(key kmsg.Key, err *kerr.Error) {
				heal = broker.Kfake().Fault(kfake.Fault{Keys: []kmsg.Key{key}, Err: err, Count: -1}).Remove
			}
			switch kind {
			case "only fetching": // sarama has no error for it
				fault(kmsg.Fetch, kerr.LeaderNotAvailable)
			case "only fetching, with an error":
				fault(kmsg.Fetch, kerr.KafkaStorageError)
			case "only commits":
				fault(kmsg.OffsetCommit, kerr.CoordinatorLoadInProgress)
				produce()
			default:
				network.Cut()
			}
			began := time.Now()
			testkit.Eventually(t, "the first line", func() bool { return len(lines()) > before })
			if first := time.Since(began); first > 10*time.Second {
				t.Errorf("the first line came after %v", first)
			}
			<-time.After(time.Until(began.Add(*outageFor)))
			heal()
			lasted := time.Since(began)
			produce()
			// The last pause before a new connection may have been half a minute.
			over := func() bool { return len(testkit.Containing(lines(), "Kafka works again")) > 0 }
			if !testkit.Poll(over) {
				testkit.Eventually(t, "the end in the log", over)
			}
			s.Wait(t, 4*partitions)
			ours := lines()[before:]
			if len(ours) > 10 || !strings.Contains(ours[len(ours)-1], "Kafka works again") {
				t.Errorf("%d lines, want at most 10, the last of which says that it is over", len(ours))
			}
			took := failingFor(t, ours[len(ours)-1])
			if took < lasted-6*time.Second || took > lasted+2*testkit.Patience {
				t.Errorf("it took %v, and the log says %v", lasted, took)
			}
			t.Logf("%d lines in %v:\n%s", len(ours), lasted, strings.Join(ours, "\n"))
		})
	}
}

// failingFor reads the field from a line.
func failingFor(t testing.TB, line string) time.Duration {
	t.Helper()
	_, value, found := strings.Cut(line, "failing_for=")
	if !found {
		t.Fatal("no failing_for in", line)
	}
	d, err := time.ParseDuration(strings.Fields(value)[0])
	testkit.Check(t, err)
	return d
}
