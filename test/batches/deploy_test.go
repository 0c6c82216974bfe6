package batches_test

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var deploys = flag.Int("deploys", 4, "graceful restarts in TestDeploys")

const (
	deployPartitions = 8
	deployRate       = 240 // records per second
	deployKeys       = 5   // per partition
)

// TestDeploys restarts the members of a group one after the other while records keep coming. Handlers stop at one record
// in 40, the first time. No record is lost, none is begun twice but those that failed, and none overtakes
// another of its lane.
func TestDeploys(t *testing.T) {
	if testing.Short() {
		t.Skip("restarts services for some seconds")
	}
	t.Parallel()
	for protocol, balance := range testkit.Protocols() {
		for ordering, concurrency := range map[ackpolicy.Ordering]int{ackpolicy.OrderByPartition: 1, ackpolicy.OrderByKey: 3} {
			t.Run(fmt.Sprint(protocol, " by ", ordering), func(t *testing.T) {
				t.Parallel()
				deploy(t, concurrency, testkit.Ordering(ordering, 0), balance)
			})
		}
	}
}

// worker is a member whose handler records what it does.
type worker struct {
	id    int
	write func(testkit.Entry)
	fails func(d *ackpolicy.Delivery) bool
}

// handle begins and ends the records of a batch in turn, up to one that fails.
func (w *worker) handle(_ context.Context, _ []*message.Message, ds []*ackpolicy.Delivery) error {
	<-time.After(time.Duration(1+ds[0].Offset()*37%20) * time.Millisecond)
	for i, d := range ds {
		e := testkit.EntryOf(testkit.Began, d)
		e.Member = w.id
		w.write(e)
		if e.Kind = testkit.Ended; w.fails(d) {
			e.Kind = testkit.Failed
		}
		w.write(e)
		if e.Kind == testkit.Failed {
			return ackpolicy.FailedAt(i, testkit.ErrBoom)
		}
	}
	return nil
}

func failsOnce(d *ackpolicy.Delivery) bool { return d.Offset()%40 == 7 && d.Attempt() == 1 }

// laneOf returns the lane of a record of a topic with so many keys per partition.
func laneOf(ordered ackpolicy.Ordering, keys int64) func(testkit.RecordID) string {
	return func(id testkit.RecordID) string {
		if ordered == ackpolicy.OrderByKey {
			return fmt.Sprint(id.Offset % keys)
		}
		return ""
	}
}

func deploy(t *testing.T, concurrency int, options ...testkit.Option) {
	group, topic := brokertest.Group(t), testkit.NewTopic(t, deployPartitions)
	producer := testkit.StartProducer(t, topic, deployPartitions, deployRate, deployKeys)
	ledger := &testkit.Ledger{}
	var members []*testkit.Service
	start := func() {
		w := &worker{id: len(members), write: ledger.Add, fails: failsOnce}
		cfg := testkit.Config(group, options...)
		cfg.Kafka.OverwriteSaramaConfig.Consumer.Group.Session.Timeout = testkit.Patience // nobody dies, and on a busy machine nobody is to be given up
		s, _ := consume(t, cfg,
			ackpolicy.BatchConfig{Size: 100, Wait: 50 * time.Millisecond, Concurrency: concurrency}, topic, w.handle, ackpolicy.NackOnError.Middleware)
		members = append(members, s)
	}
	for range 3 {
		start()
	}
	progress := func() {
		want := ledger.Count(testkit.Ended) + 200
		testkit.Eventually(t, "200 records more", func() bool { return ledger.Count(testkit.Ended) >= want })
	}
	progress()
	for i := range *deploys {
		if i%2 == 0 { // the new one before the old one goes
			start()
			members[i].Stop()
		} else {
			members[i].Stop()
			start()
		}
		progress()
	}
	ends := producer.Finish(t)
	testkit.Eventually(t, "all records", func() bool { return ledger.Done(ends) })
	for _, s := range members {
		s.Stop()
	}
	cfg := testkit.Config(group, options...)
	found := ledger.Judge(ends, laneOf(cfg.Ordering, deployKeys))
	if found.Lost > 0 || found.Twice > 0 || len(found.Faults) > 0 {
		t.Errorf("%+v\n%s", found, strings.Join(found.Faults, "\n"))
	}
	t.Logf("deploys=%d: %d records, %d begun twice, %d lost", *deploys, found.Records, found.Twice, found.Lost)
}
