package faults_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// noAutoCreate keeps a client from making the topic anew that it asks for, and has it notice soon what becomes of topics.
func noAutoCreate(c *ackpolicy.SubscriberConfig) {
	cfg := c.Kafka.OverwriteSaramaConfig
	cfg.Metadata.AllowAutoTopicCreation = false
	cfg.Metadata.RefreshFrequency = 200 * time.Millisecond
	cfg.Consumer.Retry.Backoff = 100 * time.Millisecond
}

// One of the two topics that a group's members read is deleted: those of the other one go on, and get each record once.
func TestDeletedTopicLeavesTheOtherAlone(t *testing.T) {
	t.Parallel()
	for protocol, rebalance := range testkit.Protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			const services, partitions = 2, 2
			group, kept, deleted := brokertest.Group(t), testkit.NewTopic(t, partitions), testkit.NewTopic(t, partitions)
			var mu sync.Mutex
			var times []time.Time
			offsets := map[[2]int64]int{}
			record := func(_ *message.Message, d *ackpolicy.Delivery) error {
				if d.Topic() == kept {
					mu.Lock()
					defer mu.Unlock()
					times = append(times, time.Now())
					offsets[[2]int64{int64(d.Partition()), d.Offset()}]++
				}
				return nil
			}
			var all []*testkit.Service
			for range services {
				s := testkit.NewService(t)
				s.Router.AddMiddleware(ackpolicy.NackOnError.Middleware)
				sub := testkit.NewSubscriber(t, testkit.Config(group, rebalance, noAutoCreate), s.Log)
				for _, topic := range []string{kept, deleted} {
					s.Router.AddConsumerHandler(topic, topic, sub, s.Recorded(record))
				}
				s.Start(t)
				all = append(all, s)
			}
			testkit.Eventually(t, "a group of four", func() bool {
				n, state, err := brokertest.Members(testkit.Shared.Addrs(), group)
				return err == nil && n == 2*services && state == "Stable"
			})
			producer := testkit.StartProducer(t, kept, partitions, 50, 1)
			for p := range int32(partitions) {
				testkit.Produce(t, deleted, p, testkit.Numbered(5)...)
				testkit.WaitCommitted(t, group, deleted, p, 5)
				testkit.Check(t, brokertest.WaitCommitted(testkit.Shared.Addrs(), group, kept, p, 1, testkit.Patience))
			}
			began := time.Now()
			testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error { return a.DeleteTopic(deleted) })
			for _, s := range all {
				testkit.Eventually(t, "a line that names the topic", func() bool { return len(testkit.Containing(s.Log.At("error"), "topic="+deleted)) > 0 })
			}
			handled := func() int {
				mu.Lock()
				defer mu.Unlock()
				return len(times)
			}
			after := handled() + 250
			testkit.Eventually(t, "five more seconds", func() bool { return handled() >= after })
			ends := producer.Finish(t)
			for p, end := range ends {
				testkit.Check(t, brokertest.WaitCommitted(testkit.Shared.Addrs(), group, kept, int32(p), end, testkit.Patience))
			}
			for _, s := range all {
				s.Stop()
			}
			mu.Lock()
			defer mu.Unlock()
			var longest time.Duration
			last := began
			for _, at := range times {
				if at.After(began) {
					longest, last = max(longest, at.Sub(last)), at
				}
			}
			t.Logf("%s: the longest pause was %v", protocol, longest)
			for _, s := range all { // above all, none was thrown out
				if lines := testkit.Containing(s.Log.At("error"), "topic="+kept); len(lines) > 0 {
					t.Errorf("errors of the other topic:\n%s", strings.Join(lines, "\n"))
				}
			}
			for at, n := range offsets {
				if n > 1 {
					t.Errorf("record %v was handled %d times", at, n)
				}
			}
		})
	}
}

// A topic that is deleted and created again is another one: it is read from its beginning, whatever Initial says, with
// and without a group. What was stored, or reached, was of the earlier topic. That is told.
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
							n += len(s.Journal.All())
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
					var told []string
					for _, s := range members {
						s.Stop()
						told = append(told, testkit.Containing(s.Log.At("error"), "position reset", "topic="+topic)...)
					}
					if n := locked(&resets)(); n < partitions {
						t.Errorf("%d of %d resets", n, partitions)
					}
					if len(told) < partitions {
						t.Errorf("told %d times of %d", len(told), partitions)
					}
				})
			}
		}
	}
}

// A topic is deleted and created again while a member joins the group once more: it goes on in the new topic, and does
// not take that for an end of its membership.
func TestTopicCreatedAgainAmidARebalance(t *testing.T) {
	t.Parallel()
	const partitions, before, after = 2, 5, 3
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopicOf(t, broker, partitions)
	group := brokertest.Group(t)
	cfg := func() ackpolicy.SubscriberConfig {
		return testkit.Config(group, testkit.Protocols()["cooperative"], at, noAutoCreate)
	}
	stays := testkit.Consume(t, cfg(), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	leaves := testkit.Consume(t, cfg(), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	testkit.AwaitGroupOfTwo(t, broker, group)
	fill := func(n int) {
		for p := range int32(partitions) {
			_, err := brokertest.Produce(broker.Addrs(), topic, p, testkit.Numbered(n)...)
			testkit.Check(t, err)
		}
	}
	fill(before)
	stays.Journal.Wait(t, before)
	leaves.Journal.Wait(t, before)
	joins, release := make(chan struct{}), make(chan struct{})
	broker.Kfake().ControlKey(int16(kmsg.JoinGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
		select {
		case <-joins:
		default:
			close(joins)
			broker.Kfake().SleepControl(func() { <-release })
		}
		return nil, nil, false
	})
	leaves.Stop()
	testkit.Await(t, "the member's JoinGroup", joins)
	testkit.Check(t, broker.Kfake().DeleteTopic(topic))
	testkit.Check(t, broker.Kfake().CreateTopic(topic, partitions, nil))
	fill(after)
	close(release)
	stays.Journal.Wait(t, before+partitions*after)
	for p := range int32(partitions) {
		testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), group, topic, p, after, testkit.Patience))
	}
	stays.Stop()
	if ended := testkit.Containing(stays.Log.At("error"), "Kafka consumer stopped"); len(ended) > 0 {
		t.Errorf("the membership ended:\n%s", strings.Join(ended, "\n"))
	}
}

// A topic is deleted and created again just before its newest offset is asked for: that is none to start from, or a member
// that takes the partition over skips what comes before it.
func TestTopicCreatedAgainBeforeTheStart(t *testing.T) {
	t.Parallel()
	const records = 3
	for protocol, rebalance := range testkit.Protocols() {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t)
			topic, at := testkit.FakeTopicOf(t, broker, 1)
			asks, release := make(chan struct{}), make(chan struct{})
			broker.Kfake().ControlKey(int16(kmsg.ListOffsets), func(kmsg.Request) (kmsg.Response, error, bool) {
				select {
				case <-asks:
				default:
					close(asks)
					broker.Kfake().SleepControl(func() { <-release })
				}
				return nil, nil, false
			})
			var mu sync.Mutex
			var starts []int64
			s := testkit.Consume(t, testkit.Config(brokertest.Group(t), rebalance, at, testkit.InitialOffset(sarama.OffsetNewest), noAutoCreate, func(c *ackpolicy.SubscriberConfig) {
				c.Hooks.Assigned = func(e ackpolicy.AssignedEvent) { mu.Lock(); defer mu.Unlock(); starts = append(starts, e.Start) }
			}), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
			testkit.Await(t, "the question for the newest offset", asks)
			testkit.Check(t, broker.Kfake().DeleteTopic(topic))
			testkit.Check(t, broker.Kfake().CreateTopic(topic, 1, nil))
			_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(records)...)
			testkit.Check(t, err)
			close(release)
			s.Journal.Wait(t, records)
			s.Stop()
			s.Journal.Want(t, "0#1", "1#1", "2#1")
			if !slices.Equal(starts, []int64{0}) {
				t.Errorf("the partition was begun at %d", starts)
			}
		})
	}
}

// A member that is paused does not fetch, and so does not notice at once that the topic was deleted and created again. What
// it settles then is none to go on from for the next owner of its partition.
func TestTopicCreatedAgainUnderAPausedMember(t *testing.T) {
	t.Parallel()
	const partitions, before, after = 2, 20, 5
	broker := brokertest.NewFake(t)
	topic, at := testkit.FakeTopicOf(t, broker, partitions)
	group := brokertest.Group(t)
	cfg := func() ackpolicy.SubscriberConfig {
		return testkit.Config(group, testkit.Protocols()["cooperative"], at, noAutoCreate)
	}
	stays := testkit.Consume(t, cfg(), topic, testkit.Succeed, ackpolicy.NackOnError.Middleware)
	few := cfg()
	few.MaxUncommitted = 3
	release := make(chan struct{})
	leaves := testkit.Consume(t, few, topic, func(msg *message.Message, _ *ackpolicy.Delivery) error {
		return testkit.Until(msg.Context(), release)
	}, ackpolicy.NackOnError.Middleware)
	testkit.AwaitGroupOfTwo(t, broker, group)
	fill := func(n int) {
		for p := range int32(partitions) {
			_, err := brokertest.Produce(broker.Addrs(), topic, p, testkit.Numbered(n)...)
			testkit.Check(t, err)
		}
	}
	fill(before)
	stays.Journal.Wait(t, before)
	testkit.Eventually(t, "a paused partition", func() bool {
		return len(testkit.Containing(leaves.Log.At("error"), "Partition paused: MaxUncommitted")) > 0
	})
	testkit.Check(t, broker.Kfake().DeleteTopic(topic))
	testkit.Check(t, broker.Kfake().CreateTopic(topic, partitions, nil))
	fill(after)
	testkit.Eventually(t, "the other member to notice", func() bool { return len(testkit.Containing(stays.Log.At("error"), "position reset")) > 0 })
	close(release)
	leaves.Stop()
	stays.Journal.Wait(t, before+partitions*after)
	stays.Stop()
}

// recreate makes a topic that is being deleted, and waits until the leaders of its partitions have the new one: for a
// moment longer they take records for the earlier one, which go with it.
func recreate(t *testing.T, topic string, partitions int32) {
	t.Helper()
	testkit.Eventually(t, "the topic's deletion", func() bool {
		err := brokertest.CreateTopic(testkit.Shared.Addrs(), topic, partitions)
		return err == nil
	})
	for p := range partitions {
		testkit.Eventually(t, "an empty partition", func() bool {
			end, err := brokertest.EndOffset(testkit.Shared.Addrs(), topic, p)
			return err == nil && end == 0
		})
	}
}
