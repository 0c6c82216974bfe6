package main

import "testing"

func TestGroupOfAStack(t *testing.T) {
	const ours = "github.com/ackpolicy/watermill-ackpolicy"
	for _, c := range []struct {
		name, group string
		allocating  bool
		stack       []string
	}{
		{"what a package has the runtime do", "ackpolicy: internal/partition", true,
			[]string{"runtime.memclrNoHeapPointers", "runtime.mallocgcSmallNoScanSC2", "runtime.newobject", ours + "/internal/partition.(*Partition).Take", ours + "/internal/consumer.(*Claim).work"}},
		{"another of our packages", "ackpolicy: internal/consumer", false, []string{"sync.(*Mutex).Lock", ours + "/internal/commit.(*Committer).loop"}},
		{"the root package", "ackpolicy: task, delivery, middleware", false, []string{ours + ".(*Delivery).Ack", ours + "/internal/consumer.x"}},
		{"Watermill, not watermill-kafka", "Watermill: Router and message", false, []string{"runtime.selectgo", "github.com/ThreeDotsLabs/watermill/message.(*handler).run"}},
		{"watermill-kafka", "watermill-kafka: record to message", false, []string{"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka.DefaultMarshaler.Unmarshal", ours + ".x"}},
		{"decompression", "sarama: fetch, decompress, decode", false, []string{"github.com/klauspost/compress/zstd.x", "github.com/IBM/sarama.y"}},
		{"an allocation that helps the collector", garbage, false, []string{"runtime.gcAssistAlloc1", "runtime.mallocgc", ours + ".x"}},
		{"nobody's", scheduling, false, []string{"runtime.futex", "runtime.findRunnable", "runtime.schedule", "runtime.mcall"}},
	} {
		if group, allocating := groupOf(c.stack); group != c.group || allocating != c.allocating {
			t.Errorf("%s: got %q, %v, want %q, %v", c.name, group, allocating, c.group, c.allocating)
		}
	}
}
