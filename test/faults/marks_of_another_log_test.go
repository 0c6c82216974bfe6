package faults_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	stored "github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A leader is elected that had fallen behind: the log loses its end, with records that are marked, and continues with others.
func TestUncleanElection(t *testing.T) {
	if os.Getenv("ACKPOLICY_KAFKA_STATE") == "" || len(testkit.Shared.Addrs()) != 3 {
		t.Skip("needs a cluster of three brokers: scripts/kafka.sh run --brokers 3 -- go test -run TestUncleanElection ./test/faults")
	}
	const records, kept, more = 400, 200, 10
	const blockEnd = 256
	const leader, follower = 1, 2
	old := values("r", 0, records)
	open := contents{3: old[3], 300: old[300]}
	lost := old[kept:]
	swapped := slices.Clone(lost)
	swapped[0], swapped[1] = swapped[1], swapped[0] // A1 B1 A2 becomes B1 A1 A2
	turned := slices.Clone(lost)
	slices.Reverse(turned[:kept/4])
	one := slices.Clone(lost)
	one[60] = "other"
	other := values("n", 0, records-kept)
	logs := []struct {
		name   string
		suffix []string // what is written instead of the lost records
		late   []string // and what of it comes only when the next owner has found the end
		amid   bool     // a block: it is given up
	}{
		{"other records", other, nil, false},
		{"sent again in the same order", lost, nil, false},
		{"two change places", swapped, nil, false},
		{"a fourth in reverse order", turned, nil, false},
		{"one record is another", one, nil, false},
		{"one record less", lost[1:], nil, false},
		{"one record more", append([]string{"other"}, lost...), nil, false},
		{"the log ends amid a block", nil, other, true},
		{"the log ends amid a block, and continues as it was", lost[:20], lost[20:], true},
		{"the log ends with a block", lost[:blockEnd-kept], other[blockEnd-kept:], false},
		{"the log ends with a block, and continues as it was", lost[:blockEnd-kept], lost[blockEnd-kept:], false},
	}
	group, topic := brokertest.Group(t), brokertest.Topic(t)
	assignment := map[int32][]int32{}
	for p := range logs {
		assignment[int32(p)] = []int32{leader, follower}
	}
	enabled, replicas := "true", "1"
	testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error {
		return a.CreateTopic(topic, &sarama.TopicDetail{
			NumPartitions: -1, ReplicationFactor: -1, ReplicaAssignment: assignment,
			ConfigEntries: map[string]*string{"unclean.leader.election.enable": &enabled, "min.insync.replicas": &replicas},
		}, false)
	})
	write := func(values func(p int) []string, first int64) {
		t.Helper()
		for p := range logs {
			if v := values(p); len(v) > 0 {
				at, err := brokertest.Produce(testkit.Shared.Addrs(), topic, int32(p), sentAll(v)...)
				testkit.Check(t, err)
				if at != first {
					t.Fatalf("partition %d: written at %d, want %d", p, at, first)
				}
			}
		}
	}
	write(func(int) []string { return old[:kept] }, 0)
	ofCluster(t, "stop-broker", strconv.Itoa(follower))
	write(func(int) []string { return lost }, kept)

	cfg := func() ackpolicy.SubscriberConfig {
		return testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 16))
	}
	var before deliveries
	s := testkit.Consume(t, cfg(), topic, before.handler(open), ackpolicy.NackOnError.Middleware)
	testkit.SettledAll(t, s, len(logs)*records)
	s.Stop()
	marks := make([][]stored.Block, len(logs))
	for p := range logs {
		committed, l := storedAt(t, group, topic, int32(p))
		if committed != 3 || len(l.Blocks) < 3 {
			t.Fatalf("partition %d: stored at %d: %+v", p, committed, l)
		}
		if !slices.ContainsFunc(l.Blocks, func(b stored.Block) bool { return b.End() == blockEnd }) {
			t.Fatalf("partition %d: no block ends at %d: %+v", p, blockEnd, l.Blocks)
		}
		marks[p] = l.Blocks
	}

	ofCluster(t, "stop-broker", strconv.Itoa(leader))
	ofCluster(t, "start-broker", strconv.Itoa(follower))
	testkit.Eventually(t, "the election of the replica that fell behind", func() bool { return electUnclean(topic, len(logs), follower) })
	write(func(p int) []string { return logs[p].suffix }, kept)
	ofCluster(t, "start-broker", strconv.Itoa(leader))

	var after deliveries
	s = testkit.Consume(t, cfg(), topic, after.handler(open), ackpolicy.NackOnError.Middleware)
	now := make([][]string, len(logs))
	for p, log := range logs {
		now[p] = slices.Concat(old[:kept], log.suffix, log.late, values("more", 0, more))
		if log.late != nil && !log.amid {
			waitSettled(t, group, topic, int32(p), contentsOf(now[p][:blockEnd]).without(open))
		}
		if log.amid {
			testkit.Eventually(t, "the next owner waits for no more", func() bool {
				return len(testkit.Containing(s.Log.At("info"), doubt, fmt.Sprint("kafka_partition=", p, " "))) > 0
			})
		}
		testkit.Produce(t, topic, int32(p), sentAll(now[p][kept+len(log.suffix):])...)
	}
	for p := range logs {
		waitSettled(t, group, topic, int32(p), contentsOf(now[p]).without(open))
	}
	s.Stop()
	for p, log := range logs {
		gaveUp := int64(records)
		if log.amid {
			gaveUp = int64(kept + len(log.suffix))
		}
		result := judge(t, marks[p], contentsOf(old), contentsOf(now[p]), open, gaveUp, after.of(int32(p)))
		t.Logf("%s: %+v", log.name, result)
		reported := len(testkit.Containing(s.Log.At("info"), doubt, fmt.Sprint("kafka_partition=", p, " ")))
		if want := min(1, result.blocks-result.holding); reported != want {
			t.Errorf("%s: reported %d times, want %d", log.name, reported, want)
		}
	}

	// What this owner stored holds in the log of now.
	var last deliveries
	s = testkit.Consume(t, cfg(), topic, last.handler(open), ackpolicy.NackOnError.Middleware)
	for p := range logs {
		testkit.Produce(t, topic, int32(p), sent("last"))
		now[p] = append(now[p], "last")
		waitSettled(t, group, topic, int32(p), contentsOf(now[p]).without(open))
	}
	s.Stop()
	for p, log := range logs {
		if got := last.of(int32(p)); len(got) != 1 {
			t.Errorf("%s: the third owner got %v", log.name, got)
		}
	}
}

// electUnclean asks for the election of what is left of a topic's replicas, and reports whether they all lead.
func electUnclean(topic string, partitions int, want int32) bool {
	cfg := sarama.NewConfig()
	cfg.Version = sarama.V2_8_0_0
	client, err := sarama.NewClient(testkit.Shared.Addrs(), cfg)
	if err != nil {
		return false
	}
	a, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return client.Close() != nil
	}
	defer a.Close() // and the client
	leads := true
	var all []int32
	for p := range int32(partitions) {
		all = append(all, p)
		leader, err := client.Leader(topic, p)
		leads = leads && err == nil && leader.ID() == want
	}
	if !leads {
		_, _ = a.ElectLeaders(sarama.UncleanElection, map[string][]int32{topic: all}) // it is looked at again
	}
	return leads
}

// Producers send again what a log has lost, each its own records in order, but in another order together: A1 B1 A2 becomes
// B1 A1 A2. The third record is the same at the same offset, and the topic is taken for the same one.
func TestMarksOfALogInAnotherOrder(t *testing.T) {
	t.Parallel()
	const records, swap = 300, 100
	old := slices.Concat([]string{"open"}, values("r", 1, swap-1), []string{"A1", "B1", "A2"}, values("r", swap+3, records-swap-3))
	open := contents{0: "open"}
	for order, now := range map[string][]string{
		"the same":   old,
		"B1 A1 A2":   slices.Concat(old[:swap], []string{"B1", "A1", "A2"}, old[swap+3:]),
		"A1 A2 B1":   slices.Concat(old[:swap], []string{"A1", "A2", "B1"}, old[swap+3:]),
		"C1 A1 B1":   slices.Concat(old[:swap], []string{"C1", "A1", "B1"}, old[swap+3:]), // A2 was not sent again
		"all behind": slices.Concat(old[:swap], old[swap+1:], old[swap:swap+1]),
	} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			group, earlier, topic := brokertest.Group(t), testkit.NewTopic(t, 1, sentAll(old)...), testkit.NewTopic(t, 1, sentAll(now)...)
			var before, after deliveries
			s := testkit.Consume(t, testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 16)), earlier, before.handler(open), ackpolicy.NackOnError.Middleware)
			testkit.SettledAll(t, s, records)
			s.Stop()
			committed, l := storedAt(t, group, earlier, 0)
			marks := l.Blocks
			if committed != 0 || len(marks) < 2 {
				t.Fatalf("stored at %d: %+v", committed, l)
			}
			l.TopicID = [16]byte{}
			text, _ := stored.Encode(stored.Place{Topic: topic}, l, stored.DefaultRoom)
			testkit.StorePosition(t, group, topic, sarama.OffsetFetchResponseBlock{Metadata: text})

			s = testkit.Consume(t, testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 16)), topic, after.handler(open), ackpolicy.NackOnError.Middleware)
			all := append(slices.Clone(now), "last")
			testkit.Produce(t, topic, 0, sent("last"))
			waitSettled(t, group, topic, 0, contentsOf(all).without(open))
			s.Stop()
			t.Logf("%+v", judge(t, marks, contentsOf(old), contentsOf(all), open, records, after.of(0)))
		})
	}
}

// Newer records of their keys displace some that are marked, and in one case the open one, while no member runs.
func TestMarksOfACompactedTopic(t *testing.T) {
	t.Parallel()
	if !testkit.Shared.Real() {
		t.Skip("kfake compacts when it likes")
	}
	const records = 400
	open := contents{3: "3"}
	for name, displaced := range map[string][]int64{
		"nothing": nil, "marked ones": {10, 70, 71, 72, 350}, "the last of all": {records - 1},
		"the open one": {3}, "the open one, and all behind it for a while": {3, 4, 5, 6, 7, 8, 9, 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group, topic := brokertest.Group(t), brokertest.Topic(t)
			testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), topic, 1, "cleanup.policy=compact", "segment.ms=1",
				"min.cleanable.dirty.ratio=0.01", "min.compaction.lag.ms=0"))
			var now []brokertest.Record
			write := func(records ...brokertest.Record) {
				t.Helper()
				testkit.Produce(t, topic, 0, records...)
				now = append(now, records...)
			}
			write(testkit.OwnKeys(0, records)...)
			before := contents{}
			for offset, r := range now {
				before[int64(offset)] = string(r.Value)
			}
			cfg := func() ackpolicy.SubscriberConfig {
				return testkit.Config(group, testkit.Ordering(ackpolicy.OrderByKey, 16))
			}
			var first, second deliveries
			s := testkit.Consume(t, cfg(), topic, first.handler(open), ackpolicy.NackOnError.Middleware)
			testkit.SettledAll(t, s, records)
			s.Stop()
			committed, l := storedAt(t, group, topic, 0)
			if committed != 3 || len(l.Blocks) < 3 {
				t.Fatalf("stored at %d: %+v", committed, l)
			}
			for _, offset := range displaced {
				write(brokertest.KeyValue(string(now[offset].Key), fmt.Sprint("newer than ", offset)))
			}
			write(brokertest.KeyValue("of the segment that is not cleaned", "end"))
			if !testkit.PollFor(3*testkit.Patience, func() bool { // the cleaner looks each 15 s
				log := inLog(t, topic)
				return !slices.ContainsFunc(displaced, func(offset int64) bool { _, there := log[offset]; return there })
			}) {
				t.Fatal("nothing was compacted")
			}

			s = testkit.Consume(t, cfg(), topic, second.handler(open), ackpolicy.NackOnError.Middleware)
			write(brokertest.KeyValue("more", "more"))
			log := inLog(t, topic)
			waitSettled(t, group, topic, 0, log.without(open))
			s.Stop()
			result := judge(t, l.Blocks, before, log, open, records, second.of(0))
			t.Logf("%+v", result)
			for _, offset := range displaced {
				if want := fmt.Sprint("newer than ", offset); !slices.ContainsFunc(s.All(), func(d *ackpolicy.Delivery) bool {
					return log[d.Offset()] == want && d.Status() == ackpolicy.Acked
				}) {
					t.Errorf("%s was not delivered", want)
				}
			}
			if reported, want := len(testkit.Containing(s.Log.At("info"), doubt)), min(1, result.blocks-result.holding); reported != want {
				t.Errorf("reported %d times, want %d", reported, want)
			}
		})
	}
}

// A topic is deleted and created again, with the same records, while a member has marks of the earlier one: all of the new
// one's are delivered, whether that member finds out, or is paused and may store those marks for the new one as it leaves.
func TestTopicCreatedAgainUnderMarks(t *testing.T) {
	t.Parallel()
	const records, held, more = 300, 200, 20 // handlers hold those from held on
	old := values("r", 0, records)
	open := contents{3: old[3]}
	for name, paused := range map[string]bool{"found out": false, "paused": true} {
		for protocol, rebalance := range testkit.Protocols() {
			t.Run(name+", "+protocol, func(t *testing.T) {
				t.Parallel()
				group, topic := brokertest.Group(t), testkit.NewTopic(t, 1, sentAll(old)...)
				cfg := testkit.Config(group, rebalance, noAutoCreate, testkit.Ordering(ackpolicy.OrderByKey, 16))
				var first, second deliveries
				handler, release, stuck := first.handler(open), make(chan struct{}), make(chan struct{}, 10)
				if paused {
					cfg.MaxUncommitted = 8
					cfg.Kafka.OverwriteSaramaConfig.Metadata.RefreshFrequency = time.Hour
					cfg.Hooks.Blocked = func(ackpolicy.BlockedEvent) { stuck <- struct{}{} }
					handler = func(msg *message.Message, d *ackpolicy.Delivery) error {
						if d.Offset() >= held {
							if err := testkit.Until(msg.Context(), release); err != nil {
								return err
							}
						}
						return first.handler(open)(msg, d)
					}
				}
				s := testkit.Consume(t, cfg, topic, handler, ackpolicy.NackOnError.Middleware)
				waitSettled(t, group, topic, 0, contentsOf(old[:held]).without(open))
				if paused {
					testkit.Produce(t, topic, 0, sent("one more"))
					testkit.Await(t, "a paused partition", stuck)
				} else {
					testkit.SettledAll(t, s, records)
				}
				ofEarlier := first.of(0)

				testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error { return a.DeleteTopic(topic) })
				recreate(t, topic, 1)
				now := slices.Concat(old, values("n", 0, more))
				testkit.Produce(t, topic, 0, sentAll(now)...)
				if !paused {
					s.Wait(t, 2*records+more)
					waitSettled(t, group, topic, 0, contentsOf(now).without(open))
				}
				close(release)
				s.Stop()
				committed, l := storedAt(t, group, topic, 0)
				t.Logf("stored at %d: %d blocks", committed, len(l.Blocks))

				next := testkit.Consume(t, testkit.Config(group, rebalance, noAutoCreate, testkit.Ordering(ackpolicy.OrderByKey, 16)), topic, second.handler(open), ackpolicy.NackOnError.Middleware)
				now = append(now, "last")
				testkit.Produce(t, topic, 0, sent("last"))
				if paused { // nothing is known of the new topic
					next.Wait(t, len(now))
				}
				waitSettled(t, group, topic, 0, contentsOf(now).without(open))
				next.Stop()
				if paused {
					ofEarlier = first.of(0)
				}
				for offset, value := range now {
					offset := int64(offset)
					if len(first.of(0)[offset])-len(ofEarlier[offset])+len(second.of(0)[offset]) == 0 {
						t.Errorf("%s at %d is skipped", value, offset)
					}
				}
				if got := second.of(0); !paused && len(got) != 1 {
					t.Errorf("the next owner got %d records that were settled: %v", len(got), got)
				}
			})
		}
	}
}
