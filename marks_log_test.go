package ackpolicy_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	stored "github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// The log is not what it was when the marks were stored. Whatever happened to it, no record is skipped that was not settled.

// firstSent is when the records of sent were sent for the first time.
var firstSent = anHourAgo()

// sent makes a record of its value alone: whoever sends it again sends the same one, with the same timestamp.
func sent(value string) brokertest.Record {
	n := 0
	for _, c := range value {
		n = (31*n + int(c)) % 1_000_000
	}
	r := brokertest.KeyValue("key of "+value, value)
	r.Timestamp = firstSent.Add(time.Duration(n) * time.Millisecond)
	return r
}

func sentAll(values []string) []brokertest.Record {
	records := make([]brokertest.Record, len(values))
	for i, value := range values {
		records[i] = sent(value)
	}
	return records
}

// values makes the values of n records, from a number on.
func values(of string, from, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprint(of, from+i)
	}
	return all
}

// contents are the values of a partition's records.
type contents map[int64]string

func contentsOf(values []string) contents {
	c := contents{}
	for offset, value := range values {
		c[int64(offset)] = value
	}
	return c
}

// without leaves out what is open, and still the same.
func (c contents) without(open contents) contents {
	rest := contents{}
	for offset, value := range c {
		if open[offset] != value {
			rest[offset] = value
		}
	}
	return rest
}

// deliveries are the values that were delivered at each offset of each partition.
type deliveries struct {
	mu  sync.Mutex
	all map[int32]map[int64][]string
}

func (d *deliveries) of(partition int32) map[int64][]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[int64][]string{}
	for offset, values := range d.all[partition] {
		all[offset] = slices.Clone(values)
	}
	return all
}

// handler notes what it gets. It nacks the open records for an hour, and acks the others.
func (d *deliveries) handler(open contents) handle {
	return func(msg *message.Message, delivery *ackpolicy.Delivery) error {
		value := string(msg.Payload)
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.all == nil {
			d.all = map[int32]map[int64][]string{}
		}
		p := delivery.Partition()
		if d.all[p] == nil {
			d.all[p] = map[int64][]string{}
		}
		d.all[p][delivery.Offset()] = append(d.all[p][delivery.Offset()], value)
		if open[delivery.Offset()] == value {
			return ackpolicy.NackAfter(time.Hour)
		}
		return nil
	}
}

// storedAt returns what a group has stored for a partition.
func storedAt(t testing.TB, group, topic string, partition int32) (int64, *stored.Ledger) {
	t.Helper()
	var position sarama.OffsetFetchResponseBlock
	admin(t, shared, func(a sarama.ClusterAdmin) error {
		response, err := a.ListConsumerGroupOffsets(group, map[string][]int32{topic: {partition}})
		if errors.Is(err, sarama.ErrGroupIDNotFound) { // kfake, before the first commit
			return nil
		}
		if err == nil {
			position = *response.GetBlock(topic, partition)
		}
		return err
	})
	l, err := stored.Decode(stored.Place{Topic: topic, Partition: partition, Offset: position.Offset}, position.Metadata)
	if err != nil {
		l = &stored.Ledger{}
	}
	return position.Offset, l
}

// waitSettled waits until the records are stored as settled.
func waitSettled(t testing.TB, group, topic string, partition int32, records contents) {
	t.Helper()
	eventually(t, fmt.Sprintf("all that is settled is stored, partition %d", partition), func() bool {
		committed, l := storedAt(t, group, topic, partition)
		for offset := range records {
			if _, marked := stored.Marked(l.Blocks, offset); offset >= committed && !marked {
				return false
			}
		}
		return true
	})
}

// judged is what became of a partition's records at the owner that followed after a change of its log.
type judged struct{ records, skipped, delivered, again, blocks, holding int }

// judge compares the log of now with the one in which the marks were made, and in which all but the open records were
// settled. What was not settled, or is another record, has to be delivered. What is in a block that is the same as before
// must not, unless the owner gave up waiting for it at the offset.
func judge(t *testing.T, blocks []stored.Block, before, now, open contents, gaveUp int64, got map[int64][]string) judged {
	t.Helper()
	result := judged{blocks: len(blocks)}
	holds := make([]bool, len(blocks))
	for i := range holds {
		holds[i] = blocks[i].End() <= gaveUp
	}
	for offset, value := range before {
		if block, marked := stored.Marked(blocks, offset); marked && now[offset] != value {
			holds[block] = false
		}
	}
	for _, hold := range holds {
		if hold {
			result.holding++
		}
	}
	for offset, value := range now {
		delivered := slices.Contains(got[offset], value)
		waits := open[offset] == value
		settled := before[offset] == value && !waits
		block, marked := stored.Marked(blocks, offset)
		result.records++
		if delivered {
			result.delivered++
		}
		if settled && delivered {
			if result.again++; marked && holds[block] {
				t.Errorf("%s at %d came again, and its block is the same", value, offset)
			}
		}
		if !settled && !waits && !delivered {
			result.skipped++
			t.Errorf("%s at %d is skipped, and was not settled", value, offset)
		}
	}
	for offset, values := range got {
		for _, value := range values {
			if now[offset] != value {
				t.Errorf("%s was delivered at %d, where the log has %q", value, offset, now[offset])
			}
		}
	}
	return result
}

const doubt = "Records that an earlier owner settled are delivered again"

// A leader is elected that had fallen behind: the log loses its end, with records that are marked, and goes on with others.
func TestUncleanElection(t *testing.T) {
	if os.Getenv("ACKPOLICY_KAFKA_STATE") == "" || len(shared.Addrs()) != 3 {
		t.Skip("needs a cluster of three brokers: scripts/kafka.sh run --brokers 3 -- go test -run TestUncleanElection .")
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
		{"the log ends amid a block, and goes on as it was", lost[:20], lost[20:], true},
		{"the log ends with a block", lost[:blockEnd-kept], other[blockEnd-kept:], false},
		{"the log ends with a block, and goes on as it was", lost[:blockEnd-kept], lost[blockEnd-kept:], false},
	}
	group, topic := brokertest.Group(t), brokertest.Topic(t)
	assignment := map[int32][]int32{}
	for p := range logs {
		assignment[int32(p)] = []int32{leader, follower}
	}
	enabled, replicas := "true", "1"
	admin(t, shared, func(a sarama.ClusterAdmin) error {
		return a.CreateTopic(topic, &sarama.TopicDetail{
			NumPartitions: -1, ReplicationFactor: -1, ReplicaAssignment: assignment,
			ConfigEntries: map[string]*string{"unclean.leader.election.enable": &enabled, "min.insync.replicas": &replicas},
		}, false)
	})
	write := func(values func(p int) []string, first int64) {
		t.Helper()
		for p := range logs {
			if v := values(p); len(v) > 0 {
				at, err := brokertest.Produce(shared.Addrs(), topic, int32(p), sentAll(v)...)
				check(t, err)
				if at != first {
					t.Fatalf("partition %d: written at %d, want %d", p, at, first)
				}
			}
		}
	}
	write(func(int) []string { return old[:kept] }, 0)
	ofCluster(t, "stop-broker", strconv.Itoa(follower))
	write(func(int) []string { return lost }, kept)

	cfg := func() ackpolicy.SubscriberConfig { return config(group, ordering(ackpolicy.OrderByKey, 16)) }
	var before deliveries
	s := consume(t, cfg(), topic, before.handler(open), ackpolicy.NackOnError.Middleware)
	settledAll(t, s, len(logs)*records)
	s.stop()
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
	eventually(t, "the election of the replica that fell behind", func() bool { return electUnclean(topic, len(logs), follower) })
	write(func(p int) []string { return logs[p].suffix }, kept)
	ofCluster(t, "start-broker", strconv.Itoa(leader))

	var after deliveries
	s = consume(t, cfg(), topic, after.handler(open), ackpolicy.NackOnError.Middleware)
	now := make([][]string, len(logs))
	for p, log := range logs {
		now[p] = slices.Concat(old[:kept], log.suffix, log.late, values("more", 0, more))
		if log.late != nil && !log.amid {
			waitSettled(t, group, topic, int32(p), contentsOf(now[p][:blockEnd]).without(open))
		}
		if log.amid {
			eventually(t, "the next owner waits for no more", func() bool {
				return len(with(s.log.at("info"), doubt, fmt.Sprint("kafka_partition=", p, " "))) > 0
			})
		}
		produce(t, topic, int32(p), sentAll(now[p][kept+len(log.suffix):])...)
	}
	for p := range logs {
		waitSettled(t, group, topic, int32(p), contentsOf(now[p]).without(open))
	}
	s.stop()
	for p, log := range logs {
		gaveUp := int64(records)
		if log.amid {
			gaveUp = int64(kept + len(log.suffix))
		}
		result := judge(t, marks[p], contentsOf(old), contentsOf(now[p]), open, gaveUp, after.of(int32(p)))
		t.Logf("%s: %+v", log.name, result)
		told := len(with(s.log.at("info"), doubt, fmt.Sprint("kafka_partition=", p, " ")))
		if want := min(1, result.blocks-result.holding); told != want {
			t.Errorf("%s: told %d times, want %d", log.name, told, want)
		}
	}

	// What this owner stored holds in the log of now.
	var last deliveries
	s = consume(t, cfg(), topic, last.handler(open), ackpolicy.NackOnError.Middleware)
	for p := range logs {
		produce(t, topic, int32(p), sent("last"))
		now[p] = append(now[p], "last")
		waitSettled(t, group, topic, int32(p), contentsOf(now[p]).without(open))
	}
	s.stop()
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
	client, err := sarama.NewClient(shared.Addrs(), cfg)
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
			group, earlier, topic := brokertest.Group(t), newTopic(t, 1, sentAll(old)...), newTopic(t, 1, sentAll(now)...)
			var before, after deliveries
			s := consume(t, config(group, ordering(ackpolicy.OrderByKey, 16)), earlier, before.handler(open), ackpolicy.NackOnError.Middleware)
			settledAll(t, s, records)
			s.stop()
			committed, l := storedAt(t, group, earlier, 0)
			marks := l.Blocks
			if committed != 0 || len(marks) < 2 {
				t.Fatalf("stored at %d: %+v", committed, l)
			}
			l.TopicID = [16]byte{}
			text, _ := stored.Encode(stored.Place{Topic: topic}, l, stored.DefaultRoom)
			store(t, group, topic, sarama.OffsetFetchResponseBlock{Metadata: text})

			s = consume(t, config(group, ordering(ackpolicy.OrderByKey, 16)), topic, after.handler(open), ackpolicy.NackOnError.Middleware)
			all := append(slices.Clone(now), "last")
			produce(t, topic, 0, sent("last"))
			waitSettled(t, group, topic, 0, contentsOf(all).without(open))
			s.stop()
			t.Logf("%+v", judge(t, marks, contentsOf(old), contentsOf(all), open, records, after.of(0)))
		})
	}
}

// Newer records of their keys displace some that are marked, and in one case the open one, while no member runs.
func TestMarksOfACompactedTopic(t *testing.T) {
	t.Parallel()
	if !shared.Real() {
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
			check(t, brokertest.CreateTopic(shared.Addrs(), topic, 1, "cleanup.policy=compact", "segment.ms=1",
				"min.cleanable.dirty.ratio=0.01", "min.compaction.lag.ms=0"))
			var now []brokertest.Record
			write := func(records ...brokertest.Record) {
				t.Helper()
				produce(t, topic, 0, records...)
				now = append(now, records...)
			}
			write(ownKeys(0, records)...)
			before := contents{}
			for offset, r := range now {
				before[int64(offset)] = string(r.Value)
			}
			cfg := func() ackpolicy.SubscriberConfig { return config(group, ordering(ackpolicy.OrderByKey, 16)) }
			var first, second deliveries
			s := consume(t, cfg(), topic, first.handler(open), ackpolicy.NackOnError.Middleware)
			settledAll(t, s, records)
			s.stop()
			committed, l := storedAt(t, group, topic, 0)
			if committed != 3 || len(l.Blocks) < 3 {
				t.Fatalf("stored at %d: %+v", committed, l)
			}
			for _, offset := range displaced {
				write(brokertest.KeyValue(string(now[offset].Key), fmt.Sprint("newer than ", offset)))
			}
			write(brokertest.KeyValue("of the segment that is not cleaned", "end"))
			if !pollFor(3*patience, func() bool { // the cleaner looks each 15 s
				log := inLog(t, topic)
				return !slices.ContainsFunc(displaced, func(offset int64) bool { _, there := log[offset]; return there })
			}) {
				t.Fatal("nothing was compacted")
			}

			s = consume(t, cfg(), topic, second.handler(open), ackpolicy.NackOnError.Middleware)
			write(brokertest.KeyValue("more", "more"))
			log := inLog(t, topic)
			waitSettled(t, group, topic, 0, log.without(open))
			s.stop()
			result := judge(t, l.Blocks, before, log, open, records, second.of(0))
			t.Logf("%+v", result)
			for _, offset := range displaced {
				if want := fmt.Sprint("newer than ", offset); !slices.ContainsFunc(s.journal.all(), func(d *ackpolicy.Delivery) bool {
					return log[d.Offset()] == want && d.Status() == ackpolicy.Acked
				}) {
					t.Errorf("%s was not delivered", want)
				}
			}
			if told, want := len(with(s.log.at("info"), doubt)), min(1, result.blocks-result.holding); told != want {
				t.Errorf("told %d times, want %d", told, want)
			}
		})
	}
}

// inLog reads what a topic's partition 0 holds.
func inLog(t testing.TB, topic string) contents {
	t.Helper()
	end, err := brokertest.EndOffset(shared.Addrs(), topic, 0)
	check(t, err)
	consumer, err := sarama.NewConsumer(shared.Addrs(), sarama.NewConfig())
	check(t, err)
	defer consumer.Close()
	pc, err := consumer.ConsumePartition(topic, 0, sarama.OffsetOldest)
	check(t, err)
	defer pc.Close()
	log := contents{}
	for {
		r := await(t, "a record", pc.Messages())
		if log[r.Offset] = string(r.Value); r.Offset == end-1 {
			return log
		}
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
		for protocol, rebalance := range protocols() {
			t.Run(name+", "+protocol, func(t *testing.T) {
				t.Parallel()
				group, topic := brokertest.Group(t), newTopic(t, 1, sentAll(old)...)
				cfg := config(group, rebalance, noAutoCreate, ordering(ackpolicy.OrderByKey, 16))
				var first, second deliveries
				handler, release, stuck := first.handler(open), make(chan struct{}), make(chan struct{}, 10)
				if paused {
					cfg.MaxUncommitted = 8
					cfg.Kafka.OverwriteSaramaConfig.Metadata.RefreshFrequency = time.Hour
					cfg.Hooks.Blocked = func(ackpolicy.BlockedEvent) { stuck <- struct{}{} }
					handler = func(msg *message.Message, d *ackpolicy.Delivery) error {
						if d.Offset() >= held {
							if err := until(msg.Context(), release); err != nil {
								return err
							}
						}
						return first.handler(open)(msg, d)
					}
				}
				s := consume(t, cfg, topic, handler, ackpolicy.NackOnError.Middleware)
				waitSettled(t, group, topic, 0, contentsOf(old[:held]).without(open))
				if paused {
					produce(t, topic, 0, sent("one more"))
					await(t, "a paused partition", stuck)
				} else {
					settledAll(t, s, records)
				}
				ofEarlier := first.of(0)

				admin(t, shared, func(a sarama.ClusterAdmin) error { return a.DeleteTopic(topic) })
				recreate(t, topic, 1)
				now := slices.Concat(old, values("n", 0, more))
				produce(t, topic, 0, sentAll(now)...)
				if !paused {
					s.journal.wait(t, 2*records+more)
					waitSettled(t, group, topic, 0, contentsOf(now).without(open))
				}
				close(release)
				s.stop()
				committed, l := storedAt(t, group, topic, 0)
				t.Logf("stored at %d: %d blocks", committed, len(l.Blocks))

				next := consume(t, config(group, rebalance, noAutoCreate, ordering(ackpolicy.OrderByKey, 16)), topic, second.handler(open), ackpolicy.NackOnError.Middleware)
				now = append(now, "last")
				produce(t, topic, 0, sent("last"))
				if paused { // nothing is known of the new topic
					next.journal.wait(t, len(now))
				}
				waitSettled(t, group, topic, 0, contentsOf(now).without(open))
				next.stop()
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
