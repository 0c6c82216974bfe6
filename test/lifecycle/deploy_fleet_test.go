package lifecycle_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// fleet is the members of a group.
type fleet struct {
	t        *testing.T
	app      application
	protocol func() sarama.BalanceStrategy
	log      *testkit.Log
	group    string
	topic    string
	ledger   testkit.Ledger
	batcher  *testkit.Batcher
	members  []*member // that run, the oldest first
	started  int
}

func (f *fleet) start() {
	f.t.Helper()
	m := &member{id: f.started, ended: make(chan struct{})}
	f.started++
	logger := f.log.With(watermill.LogFields{"member": m.id})
	sub, err := f.subscriber(m, logger)
	testkit.Check(f.t, err)
	m.router, err = message.NewRouter(message.RouterConfig{}, logger)
	testkit.Check(f.t, err)
	m.router.AddMiddleware(f.app.middleware...)
	m.handler = m.router.AddConsumerHandler("handler", f.topic, sub, func(msg *message.Message) error {
		return f.handle(m, msg)
	})
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	failed := make(chan error, 1)
	go func() {
		defer close(m.ended)
		err := m.router.Run(ctx)
		// Now the process exits: whatever is still to be done will not be.
		m.network.Cut()
		m.dead.Store(true)
		if err != nil {
			failed <- err
		}
	}()
	f.t.Cleanup(func() {
		_ = m.router.Close()
		<-m.ended
		cancel()
		if err := sub.Close(); err != nil {
			f.t.Errorf("member %d: Close: %v", m.id, err)
		}
	})
	select {
	case <-m.router.Running():
	case err := <-failed:
		f.t.Fatal("Run:", err)
	}
	f.members = append(f.members, m)
}

func (f *fleet) subscriber(m *member, logger watermill.LoggerAdapter) (message.Subscriber, error) {
	cfg := testkit.Config(f.group, testkit.BalanceStrategy(f.protocol()))
	m.network.Use(cfg.Kafka.OverwriteSaramaConfig)
	if f.app.stock {
		return kafka.NewSubscriber(cfg.Kafka, logger)
	}
	cfg.CommitInterval = 0 // one second, as with the stock one
	if f.app.change != nil {
		f.app.change(&cfg)
	}
	return ackpolicy.NewSubscriber(cfg, logger)
}

// handle works for 1 to 50 ms, 17 in the mean.
func (f *fleet) handle(m *member, msg *message.Message) error {
	partition, _ := kafka.MessagePartitionFromCtx(msg.Context())
	offset, _ := kafka.MessagePartitionOffsetFromCtx(msg.Context())
	if m.dead.Load() { // there is no process that it could run in
		if !f.app.stock {
			f.t.Errorf("member %d: a handler starts after Run returned: %d/%d", m.id, partition, offset)
		}
		return nil
	}
	ended := f.ledger.Handle(m.id, partition, offset)
	share := float64((offset*37+int64(partition)*11)%50) / 49
	<-time.After(time.Millisecond + time.Duration(share*share*49*float64(time.Millisecond)))
	if m.dead.Load() {
		if !f.app.stock {
			f.t.Errorf("member %d: a handler ends after Run returned: %d/%d", m.id, partition, offset)
		}
		return nil
	}
	ended()
	if f.app.nacked(offset) {
		return ackpolicy.NackAfter(time.Hour)
	}
	if f.app.finish != nil {
		f.app.finish(f, msg)
	}
	return nil
}

// stopOldest stops a member, each time in another way, and returns when its Run has returned.
func (f *fleet) stopOldest(way int) {
	f.t.Helper()
	m := f.members[0]
	f.members = f.members[1:]
	switch way % 3 {
	case 0:
		_ = m.router.Close()
	case 1:
		m.cancel()
	case 2:
		m.handler.Stop()
		testkit.Await(f.t, "Handler.Stop", m.handler.Stopped())
		_ = m.router.Close()
	}
	testkit.Await(f.t, "the end of Run", m.ended)
}

// progress waits until some more records are handled: at times so few that the next restart comes amid the rebalance.
func (f *fleet) progress(i int) {
	f.t.Helper()
	size := func() int { return f.ledger.Count(testkit.Began, testkit.Ended) }
	want := size() + []int{200, 1, 60, 20, 300}[i%5]
	testkit.Eventually(f.t, fmt.Sprintf("progress after restart %d", i), func() bool { return size() >= want })
}

func (f *fleet) judge(ends []int64) string {
	f.t.Helper()
	found := f.ledger.Judge(ends, func(id testkit.RecordID) string { return f.app.key(id.Partition, id.Offset, f.app.lanes) })
	if found.Lost > 0 {
		f.t.Errorf("%d of %d records lost", found.Lost, found.Records)
	}
	if !f.app.stock {
		if len(found.Faults) > 0 {
			f.t.Errorf("%d of %d records started twice; faults:\n%s", found.Twice, found.Records, strings.Join(found.Faults, "\n"))
		}
		for p, end := range ends {
			if f.app.nacks {
				end = min(end, firstNacked)
			}
			testkit.WantCommitted(f.t, f.group, f.topic, int32(p), end)
		}
	}
	return fmt.Sprintf("%d records, started twice %d, lost %d", found.Records, found.Twice, found.Lost)
}

// member is one process.
type member struct {
	id      int
	router  *message.Router
	handler *message.Handler
	cancel  context.CancelFunc
	network brokertest.Network
	dead    atomic.Bool
	ended   chan struct{}
}
