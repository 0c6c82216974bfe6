package brokertest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"go.uber.org/goleak"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

func TestMain(m *testing.M) {
	// sarama's metrics start one goroutine for the process and never end it.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantOffset(t *testing.T, what string, want int64) func(int64, error) {
	return func(got int64, err error) {
		t.Helper()
		if err != nil || got != want {
			t.Fatalf("%s: got %d, %v, want %d", what, got, err, want)
		}
	}
}

func TestHelpers(t *testing.T) {
	addrs, topic, group := brokertest.Brokers(t), brokertest.Topic(t), brokertest.Group(t)
	check(t, brokertest.CreateTopic(addrs, topic, 3, "max.message.bytes=2000000"))
	wantOffset(t, "end of an empty partition", 0)(brokertest.EndOffset(addrs, topic, 1))
	wantOffset(t, "produce", 0)(brokertest.Produce(addrs, topic, 1, brokertest.Values("a", "b", "c")...))
	wantOffset(t, "produce more", 3)(brokertest.Produce(addrs, topic, 1, brokertest.Record{
		Key: []byte("k"), Value: nil, Headers: []sarama.RecordHeader{{Key: []byte("h"), Value: []byte("v")}},
	}))
	wantOffset(t, "end", 4)(brokertest.EndOffset(addrs, topic, 1))
	wantOffset(t, "end of a sibling", 0)(brokertest.EndOffset(addrs, topic, 0))

	check(t, brokertest.DeleteRecords(addrs, topic, 1, 2))
	wantOffset(t, "start after DeleteRecords", 2)(brokertest.StartOffset(addrs, topic, 1))

	wantOffset(t, "committed by an unknown group", -1)(brokertest.Committed(addrs, group, topic, 1))
	check(t, brokertest.ResetOffset(addrs, group, topic, 1, 3))
	wantOffset(t, "committed", 3)(brokertest.Committed(addrs, group, topic, 1))
	all, err := brokertest.CommittedAll(addrs, group, topic)
	check(t, err)
	if want := map[int32]int64{1: 3}; !maps.Equal(all, want) {
		t.Fatalf("CommittedAll: got %v, want %v", all, want)
	}
	check(t, brokertest.WaitCommitted(addrs, group, topic, 1, 3, time.Second))
	if err := brokertest.WaitCommitted(addrs, group, topic, 1, 4, 50*time.Millisecond); err == nil {
		t.Fatal("WaitCommitted: no error for an offset that nobody commits")
	}
}

func TestProduceKeepsOrder(t *testing.T) {
	addrs, topic := brokertest.Brokers(t), brokertest.Topic(t)
	check(t, brokertest.CreateTopic(addrs, topic, 1))
	var records []brokertest.Record
	for i := range 5000 {
		records = append(records, brokertest.KeyValue(fmt.Sprint(i%7), fmt.Sprint(i)))
	}
	wantOffset(t, "produce", 0)(brokertest.Produce(addrs, topic, 0, records...))

	consumer, err := sarama.NewConsumer(addrs, nil)
	check(t, err)
	defer consumer.Close()
	partition, err := consumer.ConsumePartition(topic, 0, sarama.OffsetOldest)
	check(t, err)
	defer partition.Close()
	for i := range records {
		if msg := <-partition.Messages(); msg.Offset != int64(i) || string(msg.Value) != fmt.Sprint(i) {
			t.Fatalf("record %d: got offset %d, value %s", i, msg.Offset, msg.Value)
		}
	}
}

// A group of two, joined one after the other, with either rebalance protocol: what the library's own tests stand on.
func TestConsumerGroups(t *testing.T) {
	for name, strategy := range map[string]sarama.BalanceStrategy{
		"range":       sarama.NewBalanceStrategyRange(),
		"cooperative": sarama.NewBalanceStrategyCooperativeSticky(),
	} {
		t.Run(name, func(t *testing.T) {
			const partitions, records = 4, 5
			addrs, topic, group := brokertest.Brokers(t), brokertest.Topic(t), brokertest.Group(t)
			check(t, brokertest.CreateTopic(addrs, topic, partitions))

			started := time.Now()
			stopFirst := join(t, addrs, topic, group, strategy)
			waitMembers(t, addrs, group, 1)
			t.Logf("first member after %v", time.Since(started))
			started = time.Now()
			stopSecond := join(t, addrs, topic, group, strategy)
			waitMembers(t, addrs, group, 2)
			t.Logf("second member after %v", time.Since(started))

			for partition := range int32(partitions) {
				values := slices.Repeat([]string{"x"}, records)
				_, err := brokertest.Produce(addrs, topic, partition, brokertest.Values(values...)...)
				check(t, err)
			}
			for partition := range int32(partitions) {
				check(t, brokertest.WaitCommitted(addrs, group, topic, partition, records, 20*time.Second))
			}
			if err := brokertest.ResetOffset(addrs, group, topic, 0, 1); err == nil {
				t.Error("ResetOffset: no error for a group with members")
			}
			stopSecond()
			waitMembers(t, addrs, group, 1)
			stopFirst()
			waitMembers(t, addrs, group, 0)
		})
	}
}

func waitMembers(t *testing.T, addrs []string, group string, want int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		members, state, err := brokertest.Members(addrs, group)
		if err == nil && members == want && (state == "Stable" || want == 0) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("group %s: %d members, %s, %v; want %d, Stable", group, members, state, err, want)
		}
	}
}

// join runs a member that commits what it gets, until the function it returns is called.
func join(t *testing.T, addrs []string, topic, group string, strategy sarama.BalanceStrategy) func() {
	t.Helper()
	cfg := sarama.NewConfig()
	cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	cfg.Consumer.Offsets.AutoCommit.Enable = false
	cfg.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{strategy}
	cfg.Consumer.Group.Heartbeat.Interval = 100 * time.Millisecond
	cfg.Consumer.Group.Session.Timeout = time.Second
	cfg.Consumer.MaxWaitTime = 100 * time.Millisecond
	member, err := sarama.NewConsumerGroup(addrs, group, cfg)
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := member.Consume(ctx, []string{topic}, committer{}); errors.Is(err, sarama.ErrClosedConsumerGroup) {
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
		if err := member.Close(); err != nil {
			t.Error(err)
		}
	}
}

type committer struct{}

func (committer) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (committer) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (committer) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for msg := range claim.Messages() {
		session.MarkMessage(msg, "")
		session.Commit()
	}
	return nil
}

func TestStart(t *testing.T) {
	broker, err := brokertest.Start()
	check(t, err)
	defer broker.Close()
	if broker.Real() != (broker.Kfake() == nil) || len(broker.Addrs()) == 0 {
		t.Fatalf("Real %v, Kfake %v, Addrs %v", broker.Real(), broker.Kfake(), broker.Addrs())
	}
	if brokertest.NewFake(t).Real() {
		t.Fatal("NewFake: a real broker")
	}
}

func TestNetwork(t *testing.T) {
	addrs, topic := brokertest.Brokers(t), brokertest.Topic(t)
	check(t, brokertest.CreateTopic(addrs, topic, 1))
	var network brokertest.Network
	cfg := sarama.NewConfig()
	cfg.Metadata.Retry.Max = 0
	cfg.Net.ReadTimeout = 300 * time.Millisecond
	network.Use(cfg)
	client, err := sarama.NewClient(addrs, cfg)
	check(t, err)
	defer client.Close()
	ask := func() (time.Duration, error) {
		started := time.Now()
		_, err := client.GetOffset(topic, 0, sarama.OffsetNewest)
		return time.Since(started), err
	}
	if _, err := ask(); err != nil || network.OpenConns() == 0 {
		t.Fatalf("through an open network: %v, %d connections", err, network.OpenConns())
	}

	network.Delay(100 * time.Millisecond)
	if took, err := ask(); err != nil || took < 100*time.Millisecond {
		t.Fatalf("delayed by 100ms: took %v, %v", took, err)
	}
	network.Delay(time.Hour)
	if took, err := ask(); err == nil || took < cfg.Net.ReadTimeout {
		t.Fatalf("stalled: took %v, %v, want a read timeout", took, err)
	}
	network.Heal()

	network.Cut()
	if n := network.OpenConns(); n != 0 {
		t.Fatalf("cut: %d connections", n)
	}
	if _, err := ask(); err == nil {
		t.Fatal("cut: no error")
	}
	network.Heal()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := ask(); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("healed: %v", err)
		}
	}
	check(t, client.Close())
	for deadline := time.Now().Add(10 * time.Second); network.OpenConns() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("closed: %d connections", network.OpenConns())
		}
	}
}
