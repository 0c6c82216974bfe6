package lifecycle_test

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var deploys = flag.Int("deploys", 6, "graceful restarts in TestDeploys")

// TestDeploys restarts the members of a group one after the other while records keep coming, and while members join and
// leave. A member's process is gone as soon as its Router's Run has returned. No record is lost, none is started
// twice, and none overtakes another of its lane. That holds, too, where 5% of the records are nacked for longer than the
// test takes: they hold the offset, and what is settled behind them does not come again.
//
// The same with watermill-kafka's own Subscriber stands beside it in the log.
func TestDeploys(t *testing.T) {
	if testing.Short() {
		t.Skip("restarts services for some 20 s")
	}
	t.Parallel()
	for name, protocol := range map[string]func() sarama.BalanceStrategy{
		"range":              sarama.NewBalanceStrategyRange,
		"cooperative-sticky": sarama.NewBalanceStrategyCooperativeSticky,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			apps := applications()
			results := make([]string, len(apps))
			t.Run("fleet", func(t *testing.T) {
				for i, app := range apps {
					t.Run(app.name, func(t *testing.T) {
						t.Parallel()
						results[i] = app.name + ": " + deploy(t, app, protocol)
					})
				}
			})
			t.Logf("deploys=%d strategy=%s %s", *deploys, name, strings.Join(results, " | "))
		})
	}
}

const (
	deployPartitions = 8
	deployRate       = 160 // records per second
	deployKeys       = 5   // a partition
	nackedEvery      = 20  // 5% of the records, where some are nacked for long
	firstNacked      = 7
)

// application is what the members of a fleet run.
type application struct {
	name       string
	stock      bool // watermill-kafka's Subscriber
	lanes      int64
	nacks      bool // 5% of the records, each of its own key, for longer than the test takes
	middleware []message.HandlerMiddleware
	change     testkit.Option
	finish     func(f *fleet, msg *message.Message) // at the end of the handler
}

func applications() []application {
	nackOnError := []message.HandlerMiddleware{ackpolicy.NackOnError.Middleware}
	return []application{
		{name: "NackOnError", lanes: 1, middleware: nackOnError},
		{
			name: "NackOnError by key", lanes: deployKeys, middleware: nackOnError,
			change: testkit.Ordering(ackpolicy.OrderByKey, 16),
		},
		{
			name: "5% nacked", lanes: deployKeys, nacks: true, middleware: nackOnError,
			change: testkit.Ordering(ackpolicy.OrderByKey, 16),
		},
		{
			name: "batches under Manual", lanes: 1, middleware: []message.HandlerMiddleware{ackpolicy.Manual.Middleware},
			finish: func(f *fleet, msg *message.Message) {
				if d, ok := ackpolicy.FromMessage(msg); ok {
					f.batcher.Add(d)
				}
			},
		},
		{name: "stock watermill-kafka", stock: true, lanes: 1},
	}
}

func (a application) nacked(offset int64) bool { return a.nacks && offset%nackedEvery == firstNacked }

// key is that of a record, where others have so many.
func (a application) key(partition int32, offset, keys int64) string {
	if a.nacked(offset) {
		return fmt.Sprintf("%d-nacked-%d", partition, offset)
	}
	return testkit.KeyOf(partition, offset, keys)
}

// deploy runs an application through all restarts and returns what the ledger shows.
func deploy(t *testing.T, app application, protocol func() sarama.BalanceStrategy) string {
	f := &fleet{
		t: t, app: app, protocol: protocol, log: testkit.NewLog(t),
		group: brokertest.Group(t), topic: testkit.NewTopic(t, deployPartitions),
	}
	f.batcher = newBatcher(true, func(d *ackpolicy.Delivery) {
		t.Errorf("%d/%s: the ack was refused: %v", d.Partition(), testkit.Name(d), d.Status())
	})
	producer := testkit.StartKeyedProducer(t, f.topic, deployPartitions, deployRate, func(partition int32, offset int64) string {
		return app.key(partition, offset, deployKeys)
	})
	for range 3 {
		f.start()
	}
	testkit.Eventually(t, "records of every partition", func() bool { return f.ledger.Partitions() == deployPartitions })

	for i := range *deploys {
		switch i % 6 {
		case 2:
			f.start() // a fourth
			f.progress(i)
		case 5:
			f.stopOldest(i + 1)
			f.progress(i)
		}
		if i%4 == 3 { // the new one before the old one goes
			f.start()
			f.stopOldest(i)
		} else {
			f.stopOldest(i)
			f.start()
		}
		f.progress(i)
	}
	ends := producer.Finish(t)
	testkit.Poll(func() bool { return f.ledger.Done(ends) })
	for i := len(f.members); i > 0; i-- {
		f.stopOldest(i)
	}
	return f.judge(ends)
}
