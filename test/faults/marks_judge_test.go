package faults_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	stored "github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// The log is not what it was when the marks were stored. Whatever happened to it, no record is skipped that was not settled.

// firstSent is when the records of sent were sent for the first time.
var firstSent = testkit.AnHourAgo()

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

func contentsOf(values []string) contents {
	c := contents{}
	for offset, value := range values {
		c[int64(offset)] = value
	}
	return c
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
func (d *deliveries) handler(open contents) testkit.Handle {
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
	testkit.Admin(t, testkit.Shared, func(a sarama.ClusterAdmin) error {
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
	testkit.Eventually(t, fmt.Sprintf("all that is settled is stored, partition %d", partition), func() bool {
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

// inLog reads what a topic's partition 0 holds.
func inLog(t testing.TB, topic string) contents {
	t.Helper()
	end, err := brokertest.EndOffset(testkit.Shared.Addrs(), topic, 0)
	testkit.Check(t, err)
	consumer, err := sarama.NewConsumer(testkit.Shared.Addrs(), sarama.NewConfig())
	testkit.Check(t, err)
	defer consumer.Close()
	pc, err := consumer.ConsumePartition(topic, 0, sarama.OffsetOldest)
	testkit.Check(t, err)
	defer pc.Close()
	log := contents{}
	for {
		r := testkit.Await(t, "a record", pc.Messages())
		if log[r.Offset] = string(r.Value); r.Offset == end-1 {
			return log
		}
	}
}
