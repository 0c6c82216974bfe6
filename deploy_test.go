package ackpolicy_test

import (
	"context"
	"flag"
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
)

var deploys = flag.Int("deploys", 6, "graceful restarts in TestDeploys")

const (
	deployPartitions = 8
	deployRate       = 160 // records a second
	deployKeys       = 5   // a partition
	nackedEvery      = 20  // 5% of the records, where some are nacked for long
	firstNacked      = 7
)

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

// application is what the members of a fleet run.
type application struct {
	name       string
	stock      bool // watermill-kafka's Subscriber
	lanes      int64
	nacks      bool // 5% of the records, each of a key of its own, for longer than the test takes
	middleware []message.HandlerMiddleware
	change     change
	finish     func(f *fleet, msg *message.Message) // at the end of the handler
}

func applications() []application {
	nackOnError := []message.HandlerMiddleware{ackpolicy.NackOnError.Middleware}
	return []application{
		{name: "NackOnError", lanes: 1, middleware: nackOnError},
		{
			name: "NackOnError by key", lanes: deployKeys, middleware: nackOnError,
			change: ordering(ackpolicy.OrderByKey, 16),
		},
		{
			name: "5% nacked", lanes: deployKeys, nacks: true, middleware: nackOnError,
			change: ordering(ackpolicy.OrderByKey, 16),
		},
		{
			name: "batches under Manual", lanes: 1, middleware: []message.HandlerMiddleware{ackpolicy.Manual.Middleware},
			finish: func(f *fleet, msg *message.Message) {
				if d, ok := ackpolicy.FromMessage(msg); ok {
					f.batcher.add(d)
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
	return key(partition, offset, keys)
}

// deploy runs an application through all restarts and returns what the ledger tells.
func deploy(t *testing.T, app application, protocol func() sarama.BalanceStrategy) string {
	f := &fleet{
		t: t, app: app, protocol: protocol, log: newLog(t),
		group: brokertest.Group(t), topic: newTopic(t, deployPartitions),
	}
	f.batcher = &batcher{cumulative: true, refused: func(d *ackpolicy.Delivery) {
		t.Errorf("%d/%s: the ack was refused: %v", d.Partition(), name(d), d.Status())
	}}
	producer := startKeyed(t, f.topic, deployPartitions, deployRate, func(partition int32, offset int64) string {
		return app.key(partition, offset, deployKeys)
	})
	for range 3 {
		f.start()
	}
	eventually(t, "records of every partition", func() bool { return f.ledger.partitions() == deployPartitions })

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
	ends := producer.finish(t)
	poll(func() bool { return f.ledger.done(ends) })
	for i := len(f.members); i > 0; i-- {
		f.stopOldest(i)
	}
	return f.judge(ends)
}

// fleet is the members of a group.
type fleet struct {
	t        *testing.T
	app      application
	protocol func() sarama.BalanceStrategy
	log      *log
	group    string
	topic    string
	ledger   ledger
	batcher  *batcher
	members  []*member // that run, the oldest first
	started  int
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

func (f *fleet) start() {
	f.t.Helper()
	m := &member{id: f.started, ended: make(chan struct{})}
	f.started++
	logger := f.log.With(watermill.LogFields{"member": m.id})
	sub, err := f.subscriber(m, logger)
	check(f.t, err)
	m.router, err = message.NewRouter(message.RouterConfig{}, logger)
	check(f.t, err)
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
	cfg := config(f.group, strategy(f.protocol()))
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
	f.ledger.add(event{m.id, partition, offset, false})
	share := float64((offset*37+int64(partition)*11)%50) / 49
	<-time.After(time.Millisecond + time.Duration(share*share*49*float64(time.Millisecond)))
	if m.dead.Load() {
		if !f.app.stock {
			f.t.Errorf("member %d: a handler ends after Run returned: %d/%d", m.id, partition, offset)
		}
		return nil
	}
	f.ledger.add(event{m.id, partition, offset, true})
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
		await(f.t, "Handler.Stop", m.handler.Stopped())
		_ = m.router.Close()
	}
	await(f.t, "the end of Run", m.ended)
}

// progress waits until some more records are handled: at times so few that the next restart comes amid the rebalance.
func (f *fleet) progress(i int) {
	f.t.Helper()
	want := f.ledger.size() + []int{200, 1, 60, 20, 300}[i%5]
	eventually(f.t, fmt.Sprintf("progress after restart %d", i), func() bool { return f.ledger.size() >= want })
}

func (f *fleet) judge(ends []int64) string {
	f.t.Helper()
	found := f.ledger.judge(ends, func(partition int32, offset int64) string { return f.app.key(partition, offset, f.app.lanes) })
	if found.lost > 0 {
		f.t.Errorf("%d of %d records lost", found.lost, found.records)
	}
	if !f.app.stock {
		if len(found.faults) > 0 {
			f.t.Errorf("%d of %d records started twice; faults:\n%s", found.twice, found.records, strings.Join(found.faults, "\n"))
		}
		for p, end := range ends {
			if f.app.nacks {
				end = min(end, firstNacked)
			}
			wantCommitted(f.t, f.group, f.topic, int32(p), end)
		}
	}
	return fmt.Sprintf("%d records, started twice %d, lost %d", found.records, found.twice, found.lost)
}
