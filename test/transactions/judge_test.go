package transactions_test

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// waitSettled waits until the group has settled everything.
func (s spec) waitSettled(t *testing.T) {
	t.Helper()
	testkit.Eventually(t, "all records to be settled", func() bool {
		committed, err := brokertest.CommittedAll(testkit.Shared.Addrs(), s.Group, s.In)
		if err != nil || len(committed) == 0 {
			return false
		}
		for p, offset := range committed {
			if end, err := brokertest.EndOffset(testkit.Shared.Addrs(), s.In, p); err != nil || offset != end {
				return false
			}
		}
		return true
	})
}

// waitBegun waits until the group has committed an offset in some partition.
func (s spec) waitBegun(t *testing.T, offset int64) {
	t.Helper()
	testkit.Eventually(t, "some records to be settled", func() bool {
		all, err := brokertest.CommittedAll(testkit.Shared.Addrs(), s.Group, s.In)
		return err == nil && slices.ContainsFunc(slices.Collect(maps.Values(all)), func(at int64) bool { return at >= offset })
	})
}

// judge reads, as read_committed consumers do, what the group has written, and wants each input's output once, in the
// order of its key, and each rejected input's letter once. No transaction may be open, and no producer have aborted twice.
func (s spec) judge(t *testing.T, partitions int32, records int) {
	t.Helper()
	seen := map[testkit.RecordID]int{}
	last := map[string]int64{}
	for p := range int32(2) {
		for _, m := range committed(t, s.Out, p) {
			var o origin
			testkit.Check(t, json.Unmarshal(m.Value, &o))
			seen[testkit.RecordID{Partition: o.Partition, Offset: o.Offset}]++
			if before, ok := last[o.Key]; ok && o.Offset < before {
				t.Errorf("key %s: the output of offset %d comes after that of %d", o.Key, o.Offset, before)
			}
			last[o.Key] = o.Offset
			if rejects(o.Offset) {
				t.Errorf("the rejected record %d/%d has output", o.Partition, o.Offset)
			}
		}
	}
	for p := range partitions {
		letters := 0
		for range committed(t, s.In+".dlq", p) {
			letters++
		}
		want := 0
		for offset := range int64(records) {
			if rejects(offset) {
				want++
			} else if n := seen[testkit.RecordID{Partition: p, Offset: offset}]; n != 1 {
				t.Errorf("the output of %d/%d was written %d times", p, offset, n)
			}
		}
		if letters != want {
			t.Errorf("partition %d: %d letters, want %d", p, letters, want)
		}
	}
	twice, err := brokertest.AbortedTwice(testkit.Shared.Addrs(), s.Out, s.In+".dlq")
	testkit.Check(t, err)
	if len(twice) > 0 {
		t.Errorf("more than one aborted transaction: %v", twice)
	}
}

// committed returns the committed records of a partition. It waits for open transactions.
func committed(t *testing.T, topic string, partition int32) (records []*sarama.ConsumerMessage) {
	t.Helper()
	testkit.Check(t, brokertest.Read(testkit.Shared.Addrs(), topic, partition, testkit.Patience, func(m *sarama.ConsumerMessage) error {
		records = append(records, m)
		return nil
	}))
	return records
}
