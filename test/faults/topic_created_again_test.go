package faults_test

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A topic that is deleted and created again is another one: it is read from its beginning, whatever Initial says, with
// and without a group. What was stored, or reached, was of the earlier topic. The log says so.
func TestTopicCreatedAgain(t *testing.T) {
	t.Parallel()
	const partitions, before, after = 4, 20, 30 // per partition: the position reached lies in the midst of the new log
	for name, grouped := range map[string]bool{"group": true, "no group": false} {
		for position, offset := range map[string]int64{"newest": sarama.OffsetNewest, "oldest": sarama.OffsetOldest} {
			for protocol, rebalance := range testkit.Protocols() {
				if !grouped && protocol != "eager" {
					continue
				}
				t.Run(name+" "+position+" "+protocol, func(t *testing.T) {
					t.Parallel()
					group, topic := brokertest.Group(t), testkit.NewTopic(t, partitions)
					if !grouped {
						group = ""
					}
					var mu sync.Mutex
					resets, assigned := 0, 0
					got := map[[2]int64]int{} // of the new topic
					member := func() *testkit.Service {
						return testkit.Consume(t, testkit.Config(group, rebalance, testkit.InitialOffset(offset), noAutoCreate, func(c *ackpolicy.SubscriberConfig) {
							c.Hooks.Assigned = func(ackpolicy.AssignedEvent) { mu.Lock(); defer mu.Unlock(); assigned++ }
							c.Hooks.PositionReset = func(ackpolicy.PositionResetEvent) { mu.Lock(); defer mu.Unlock(); resets++ }
						}), topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
							if string(msg.Payload) == "new" {
								mu.Lock()
								defer mu.Unlock()
								got[[2]int64{int64(d.Partition()), d.Offset()}]++
							}
							return nil
						}, ackpolicy.NackOnError.Middleware)
					}
					members := []*testkit.Service{member()}
					if grouped {
						members = append(members, member())
					}
					locked := func(n *int) func() int { return func() int { mu.Lock(); defer mu.Unlock(); return *n } }
					testkit.Eventually(t, "their partitions", func() bool {
						if n, state, err := brokertest.Members(testkit.Shared.Addrs(), group); grouped && (err != nil || n < len(members) || state != "Stable") {
							return false
						}
						return locked(&assigned)() >= partitions
					})
					for p := range int32(partitions) {
						testkit.Produce(t, topic, p, testkit.Numbered(before)...)
					}
					testkit.Eventually(t, "the old records", func() bool {
						n := 0
						for _, s := range members {
							n += len(s.All())
						}
						return n >= partitions*before
					})

					testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error { return a.DeleteTopic(topic) })
					recreate(t, topic, partitions)
					for p := range int32(partitions) {
						records := make([]brokertest.Record, after)
						for i := range records {
							records[i].Value = []byte("new")
						}
						testkit.Produce(t, topic, p, records...)
					}
					testkit.Eventually(t, "the new records", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) >= partitions*after })
					if grouped {
						for p := range int32(partitions) {
							testkit.WaitCommitted(t, group, topic, p, after)
						}
					}
					var reported []string
					for _, s := range members {
						s.Stop()
						reported = append(reported, testkit.Containing(s.Log.At("error"), "position reset", "topic="+topic)...)
					}
					if n := locked(&resets)(); n < partitions {
						t.Errorf("%d of %d resets", n, partitions)
					}
					if len(reported) < partitions {
						t.Errorf("reported %d times of %d", len(reported), partitions)
					}
				})
			}
		}
	}
}

// fakeGroup is a cooperative group of two members on a broker of the test's own, with a partition each.
type fakeGroup struct {
	broker        *brokertest.Broker
	group, topic  string
	stays, leaves *testkit.Service
}

const fakePartitions = 2

// newFakeGroup has a member that succeeds, and one with a handler and options of its own.
func newFakeGroup(t *testing.T, h testkit.Handle, options ...testkit.Option) *fakeGroup {
	t.Helper()
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopicOf(t, broker, fakePartitions)
	g := &fakeGroup{broker: broker, group: brokertest.Group(t), topic: topic}
	both := []testkit.Option{testkit.Protocols()["cooperative"], at, noAutoCreate}
	g.stays = testkit.Consume(t, testkit.Config(g.group, both...), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	g.leaves = testkit.Consume(t, testkit.Config(g.group, append(both, options...)...), topic, h, ackpolicy.NackOnError.Middleware)
	testkit.AwaitGroupOfTwo(t, broker, g.group)
	return g
}

// fill writes n records into each partition.
func (g *fakeGroup) fill(t *testing.T, n int) {
	t.Helper()
	for p := range int32(fakePartitions) {
		_, err := brokertest.Produce(g.broker.Addrs(), g.topic, p, testkit.Numbered(n)...)
		testkit.Check(t, err)
	}
}

func (g *fakeGroup) recreate(t *testing.T) {
	t.Helper()
	testkit.Check(t, g.broker.Kfake().DeleteTopic(g.topic))
	testkit.Check(t, g.broker.Kfake().CreateTopic(g.topic, fakePartitions, nil))
}

// createAgain deletes a topic with one partition, and creates it with as many records.
func createAgain(t *testing.T, broker *brokertest.Broker, topic string, records int) {
	t.Helper()
	testkit.Check(t, broker.Kfake().DeleteTopic(topic))
	testkit.Check(t, broker.Kfake().CreateTopic(topic, 1, nil))
	_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(records)...)
	testkit.Check(t, err)
}

// holdFirst has the broker respond to its first request of a kind only once release is closed.
func holdFirst(broker *brokertest.Broker, key kmsg.Key) (held <-chan struct{}, release chan<- struct{}) {
	asked, respond := make(chan struct{}), make(chan struct{})
	broker.Kfake().ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
		select {
		case <-asked:
		default:
			close(asked)
			broker.Kfake().SleepControl(func() { <-respond })
		}
		return nil, nil, false
	})
	return asked, respond
}

// holdSecond is holdFirst for the second request of a kind.
func holdSecond(broker *brokertest.Broker, key kmsg.Key) (held <-chan struct{}, release chan<- struct{}) {
	asked, respond, n := make(chan struct{}), make(chan struct{}), 0
	broker.Kfake().ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
		broker.Kfake().KeepControl()
		if n++; n == 2 {
			close(asked)
			broker.Kfake().SleepControl(func() { <-respond })
		}
		return nil, nil, false
	})
	return asked, respond
}

// A topic is deleted and created again while a member joins the group again: it continues in the new topic, and does
// not take that for an end of its membership.
func TestTopicCreatedAgainAmidARebalance(t *testing.T) {
	t.Parallel()
	const before, after = 5, 3
	g := newFakeGroup(t, testkit.Succeed)
	g.fill(t, before)
	g.stays.Wait(t, before)
	g.leaves.Wait(t, before)
	joins, release := holdFirst(g.broker, kmsg.JoinGroup)
	g.leaves.Stop()
	testkit.Await(t, "the member's JoinGroup", joins)
	g.recreate(t)
	g.fill(t, after)
	close(release)
	g.stays.Wait(t, before+fakePartitions*after)
	for p := range int32(fakePartitions) {
		testkit.Check(t, brokertest.WaitCommitted(g.broker.Addrs(), g.group, g.topic, p, after, testkit.Patience))
	}
	g.stays.Stop()
	if ended := testkit.Containing(g.stays.Log.At("error"), "Kafka consumer stopped"); len(ended) > 0 {
		t.Errorf("the membership ended:\n%s", strings.Join(ended, "\n"))
	}
}

// A topic is deleted and created again just before its newest offset is asked for: it must not become the
// start, or a member that takes the partition over skips the records before it.
func TestTopicCreatedAgainBeforeTheStart(t *testing.T) {
	t.Parallel()
	const records = 3
	testkit.EachProtocol(t, func(t *testing.T, rebalance testkit.Option) {
		broker := brokertest.NewFake(t)
		topic, at := testkit.FakeTopicOf(t, broker, 1)
		asks, release := holdFirst(broker, kmsg.ListOffsets)
		var mu sync.Mutex
		var starts []int64
		s := testkit.Consume(t, testkit.Config(brokertest.Group(t), rebalance, at, testkit.InitialOffset(sarama.OffsetNewest), noAutoCreate, func(c *ackpolicy.SubscriberConfig) {
			c.Hooks.Assigned = func(e ackpolicy.AssignedEvent) { mu.Lock(); defer mu.Unlock(); starts = append(starts, e.Start) }
		}), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
		testkit.Await(t, "the question for the newest offset", asks)
		createAgain(t, broker, topic, records)
		close(release)
		s.Wait(t, records)
		s.Stop()
		s.Want(t, "0#1", "1#1", "2#1")
		if !slices.Equal(starts, []int64{0}) {
			t.Errorf("the partition was begun at %d", starts)
		}
	})
}

// A topic is deleted and created again while a member joins, which has never seen the earlier one: between sarama's
// question for what is stored and ours. What sarama got is no position in the new topic.
func TestTopicCreatedAgainBetweenTwoQuestions(t *testing.T) {
	t.Parallel()
	const before, after = 3, 5
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopic(t, broker, testkit.Numbered(before)...)
	cfg := testkit.Config(brokertest.Group(t), at, noAutoCreate)
	first := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	first.Wait(t, before)
	first.Stop()

	asks, respond := holdSecond(broker, kmsg.OffsetFetch)
	second := testkit.Consume(t, cfg, topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.Await(t, "the second question for what is stored", asks)
	createAgain(t, broker, topic, after)
	close(respond)
	second.Wait(t, after)
	second.Stop()
	second.Want(t, "0#1", "1#1", "2#1", "3#1", "4#1")
}

// A member that is paused does not fetch, and so does not notice at once that the topic was deleted and created again. What
// it settles then is no position for the next owner of its partition to start from.
func TestTopicCreatedAgainUnderAPausedMember(t *testing.T) {
	t.Parallel()
	const before, after = 20, 5
	release := make(chan struct{})
	g := newFakeGroup(t, func(msg *message.Message, _ *ackpolicy.Delivery) error {
		return testkit.Until(msg.Context(), release)
	}, func(c *ackpolicy.SubscriberConfig) { c.MaxUncommitted = 3 })
	g.fill(t, before)
	g.stays.Wait(t, before)
	testkit.Eventually(t, "a paused partition", func() bool {
		return len(testkit.Containing(g.leaves.Log.At("error"), "Partition paused: MaxUncommitted")) > 0
	})
	g.recreate(t)
	g.fill(t, after)
	testkit.Eventually(t, "the other member to notice", func() bool { return len(testkit.Containing(g.stays.Log.At("error"), "position reset")) > 0 })
	close(release)
	g.leaves.Stop()
	g.stays.Wait(t, before+fakePartitions*after)
	g.stays.Stop()
}
