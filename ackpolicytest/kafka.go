package ackpolicytest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/rcrowley/go-metrics"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/memkafka"
	"github.com/ackpolicy/watermill-ackpolicy/internal/seam"
)

// Kafka is a Kafka in memory, for the test of an application with a real [ackpolicy.Subscriber].
// Run starts it.
//
// What is configured with it belongs to one process, until Crash: then that process is dead,
// and what is configured from then on belongs to the next one.
type Kafka struct {
	t       testing.TB
	cluster *memkafka.Cluster
	watched *recorder
	atMost  time.Duration // that WaitSettled lets pass
	goes    sync.WaitGroup

	mu      sync.Mutex
	process *process
}

// process has what ends with a process. The Kafka's lock guards it.
type process struct {
	link   *memkafka.Link
	dead   atomic.Bool
	closes []func() error
}

// Run runs a test in a bubble of package testing/synctest, with a Kafka. In the bubble, time
// advances only while everything waits, and then at once: an hour takes no longer than what
// happens in it. No goroutine of the test may be left when it returns; Run closes what was made
// by the Kafka's methods.
func Run(t *testing.T, test func(t *testing.T, k *Kafka)) {
	t.Helper()
	metrics.NewMeter().Stop() // starts a goroutine for the process, which must not belong to the bubble
	synctest.Test(t, func(t *testing.T) {
		k := &Kafka{t: t, cluster: memkafka.New(), watched: newRecorder(), atMost: 24 * time.Hour}
		k.process = k.newProcess()
		defer k.close()
		test(t, k)
	})
}

func (k *Kafka) newProcess() *process {
	p := &process{}
	p.link = k.cluster.NewLink(k.watched.watcher(p.dead.Load))
	return p
}

func (k *Kafka) close() {
	k.mu.Lock()
	p := k.process
	k.mu.Unlock()
	k.end(p)
	k.goes.Wait()
	k.cluster.Close()
}

func (k *Kafka) end(p *process) {
	k.mu.Lock()
	closes := p.closes
	k.mu.Unlock()
	for i := len(closes) - 1; i >= 0; i-- {
		if err := closes[i](); err != nil && !p.dead.Load() {
			k.t.Errorf("ackpolicytest: cannot close: %v", err)
		}
	}
}

// closing calls a function at the end of the process.
func (k *Kafka) closing(f func() error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.process.closes = append(k.process.closes, f)
}

// Config returns the configuration with what connects it to the Kafka, for applications that
// make their Subscribers themselves. It needs neither TLS nor SASL, and no broker's address.
// Without a sarama configuration, groups begin with the oldest record.
func (k *Kafka) Config(c ackpolicy.SubscriberConfig) ackpolicy.SubscriberConfig {
	c.Kafka.Brokers = []string{memkafka.Address}
	var cfg sarama.Config
	if user := c.Kafka.OverwriteSaramaConfig; user != nil {
		cfg = *user
	} else {
		cfg = *kafka.DefaultSaramaSubscriberConfig()
		cfg.Consumer.Offsets.Initial = sarama.OffsetOldest
	}
	if !cfg.Version.IsAtLeast(sarama.V2_8_0_0) {
		cfg.Version = sarama.V2_8_0_0
	}
	cfg.ApiVersionsRequest = true
	cfg.Net.TLS.Enable, cfg.Net.SASL.Enable = false, false
	k.mu.Lock()
	defer k.mu.Unlock()
	cfg.Net.Proxy.Enable, cfg.Net.Proxy.Dialer = true, k.process.link
	c.Kafka.OverwriteSaramaConfig = &cfg
	return c
}

// Subscriber returns a Subscriber with Config of the configuration. It logs to the test, and
// is closed at the test's end.
func (k *Kafka) Subscriber(config ackpolicy.SubscriberConfig) *ackpolicy.Subscriber {
	k.t.Helper()
	sub, err := ackpolicy.NewSubscriber(k.Config(config), k.Logger())
	if err != nil {
		k.t.Fatal(err)
	}
	k.closing(sub.Close)
	return sub
}

// Start runs a Router until the test's end, and returns once it runs.
func (k *Kafka) Start(router *message.Router) {
	k.t.Helper()
	failed := make(chan error, 1)
	k.goes.Go(func() {
		if err := router.Run(context.Background()); err != nil {
			failed <- err
		}
	})
	select {
	case <-router.Running():
		k.closing(router.Close)
	case err := <-failed:
		k.t.Fatal("ackpolicytest: the Router does not run: ", err)
	}
}

// Publisher returns a Publisher that writes to the Kafka as watermill-kafka's does with its
// DefaultMarshaler, to partition 0.
func (k *Kafka) Publisher() message.Publisher { return publisher{k} }

type publisher struct{ k *Kafka }

// Publish implements message.Publisher.
func (p publisher) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		record, err := kafka.DefaultMarshaler{}.Marshal(topic, msg)
		if err == nil {
			_, err = p.k.append(record)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Close implements message.Publisher.
func (publisher) Close() error { return nil }

// CreateTopic creates a topic, or adds partitions to it. Topics that do not exist are created with one partition when
// somebody writes to them or reads from them.
func (k *Kafka) CreateTopic(topic string, partitions int) { k.cluster.CreateTopic(topic, partitions) }

// Produce publishes messages, see Publisher.
func (k *Kafka) Produce(topic string, messages ...*message.Message) {
	k.t.Helper()
	if err := k.Publisher().Publish(topic, messages...); err != nil {
		k.t.Fatal(err)
	}
}

// ProduceRecord writes a record to its topic and partition, and returns its offset.
func (k *Kafka) ProduceRecord(record *sarama.ProducerMessage) (offset int64) {
	k.t.Helper()
	offset, err := k.append(record)
	if err != nil {
		k.t.Fatal(err)
	}
	return offset
}

func (k *Kafka) append(m *sarama.ProducerMessage) (offset int64, err error) {
	record, err := recordFrom(m)
	if err != nil {
		return 0, err
	}
	return k.cluster.Append(record), nil
}

// Records returns all records of a topic, partition by partition: what was produced, or the
// letters in the topic of a DeadLetterTopic.
func (k *Kafka) Records(topic string) []*sarama.ConsumerMessage { return k.cluster.Records(topic) }

// Committed returns the offset that a group has stored for a partition: that of the next
// record to read. It is -1 if nothing is stored. What is settled is stored within
// SubscriberConfig.CommitInterval, see Advance and WaitSettled.
func (k *Kafka) Committed(group, topic string, partition int32) int64 {
	return k.cluster.Committed(group, topic, partition)
}

// Settlements returns how the deliveries of a record were settled, in their order.
func (k *Kafka) Settlements(group, topic string, partition int32, offset int64) []Settlement {
	return k.watched.of(seam.Place{Group: group, Topic: topic, Partition: partition, Offset: offset})
}

// Settlement returns the last one of a record. If there is none, its Attempt is 0.
func (k *Kafka) Settlement(group, topic string, partition int32, offset int64) Settlement {
	return k.watched.last(seam.Place{Group: group, Topic: topic, Partition: partition, Offset: offset})
}

// Advance lets time pass, and then waits until everything waits: until handlers that need no
// more time have returned. Advance(0) only waits.
func (k *Kafka) Advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// WaitSettled lets time pass until every record of a topic is acked or rejected, and the group
// has stored that. It ends the test if that does not happen within a day. A group "", of a
// Subscriber without one, stores nothing.
func (k *Kafka) WaitSettled(group, topic string) {
	k.t.Helper()
	over := time.NewTimer(k.atMost)
	defer over.Stop()
	for {
		next, committed := k.watched.next(), k.cluster.Commits(group)
		open := k.open(group, topic)
		if len(open) == 0 {
			synctest.Wait()
			return
		}
		select {
		case <-next:
		case <-committed:
		case <-over.C:
			k.t.Fatalf("ackpolicytest: group %q has not settled topic %s after %v: %s", group, topic, k.atMost, strings.Join(open, "; "))
		}
	}
}

// open describes what of a topic is not settled, the first records of each partition.
func (k *Kafka) open(group, topic string) (texts []string) {
	for p, end := range k.cluster.Ends(topic) {
		stored := max(0, k.Committed(group, topic, int32(p)))
		if stored == end {
			continue
		}
		first := len(texts)
		for offset := stored; offset < end && len(texts) < first+3; offset++ {
			s := k.Settlement(group, topic, int32(p), offset)
			if s.Status != ackpolicy.Acked && s.Status != ackpolicy.Rejected {
				texts = append(texts, s.String())
			}
		}
		if group != "" && len(texts) == first {
			texts = append(texts, fmt.Sprintf("partition %d: the group has stored %d of %d", p, stored, end))
		}
	}
	return texts
}

// Crash ends the process: its connections are cut, its groups continue without it, and nothing
// that it still does has an effect. Its handlers are not stopped, which a test cannot do. The
// next process needs new Subscribers and Routers.
func (k *Kafka) Crash() {
	k.mu.Lock()
	p := k.process
	k.process = k.newProcess()
	k.mu.Unlock()
	p.dead.Store(true)
	p.link.Kill()
	k.goes.Go(func() { k.end(p) })
	synctest.Wait()
}

// Revoke assigns a partition of a group to a member of another application, which does not
// read it. All members of the group join again.
func (k *Kafka) Revoke(group, topic string, partition int32) {
	k.cluster.Take(group, topic, partition, true)
	synctest.Wait()
}

// Assign gives a partition that was revoked back to the group.
func (k *Kafka) Assign(group, topic string, partition int32) {
	k.cluster.Take(group, topic, partition, false)
	synctest.Wait()
}
