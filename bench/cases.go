package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"
)

// bcase is one row of the bench: a topic, a handler, a concurrency, and who takes part.
type bcase struct {
	name        string
	about       string
	records     int64
	work, spin  time.Duration
	concurrency int
	partitions  int
	size, keys  int
	consumers   []string
	baseline    string // ratios are to it
	limit       string
}

var cases = []bcase{
	{name: "noop", about: "a handler that does nothing, 4 partitions, 100 B, one at a time a partition",
		records: 1_000_000, concurrency: 1, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"memory loop", "sarama group", "franz-go group", "stock loop", "ackpolicy loop"},
		baseline:  "stock loop", limit: "memory loop"},
	{name: "router", about: "the same through a Router; ackpolicy with NackOnError.Middleware",
		records: 1_000_000, concurrency: 1, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"memory router", "stock router", "ackpolicy router"},
		baseline:  "stock router", limit: "memory router"},
	{name: "1ms", about: "a handler that waits 1 ms, Router, 64 at once a partition where the consumer can, 10,000 keys",
		records: 200_000, work: time.Millisecond, concurrency: 64, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"memory router", "ackpolicy key", "ackpolicy unordered"},
		baseline:  "stock router", limit: "memory router"},
	{name: "10ms", about: "a handler that waits 10 ms, Router, 256 at once a partition, 10,000 keys",
		records: 200_000, work: 10 * time.Millisecond, concurrency: 256, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"memory router", "ackpolicy key", "ackpolicy unordered"},
		limit:     "memory router"},
	{name: "50us", about: "a handler that computes for 50 µs, Router, 4 at once a partition, 10,000 keys",
		records: 100_000, spin: 50 * time.Microsecond, concurrency: 4, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"memory router", "stock router", "ackpolicy key"},
		baseline:  "stock router", limit: "memory router"},
	{name: "confirm", about: "each commit confirmed before its handler runs (ConfirmFirst), 64 at once a partition",
		records: 200_000, concurrency: 64, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"ackpolicy ack_first", "ackpolicy confirm_first"}},
}

func printList() {
	for _, c := range cases {
		fmt.Printf("%-10s %s\n", c.name, c.about)
	}
	fmt.Println()
	for _, c := range consumers {
		fmt.Printf("%-24s %s\n", c.name, c.guarantee)
	}
}

type bench struct {
	brokers []string
	runs    int
	timeout time.Duration
	profile string
	only    []string
	loaded  map[string]bool
	tables  []table
}

func (b *bench) run(name string) error {
	i := slices.IndexFunc(cases, func(c bcase) bool { return c.name == name })
	if i < 0 {
		return fmt.Errorf("no case %q: -list shows them", name)
	}
	c := cases[i]
	who := c.consumers
	if len(b.only) > 0 {
		who = b.only
	}
	if c.baseline != "" && !slices.Contains(who, c.baseline) && len(b.only) == 0 {
		who = append(slices.Clone(who), c.baseline)
	}
	topic, err := b.load(c)
	if err != nil {
		return err
	}
	results := map[string][]result{}
	for run := range b.runs {
		for _, w := range who { // in turn, so that a drift of the machine hits all alike
			j := job{
				Consumer: w, Brokers: b.brokers, Topic: topic,
				Group:   fmt.Sprintf("bench-%s-%s-%d-%d", c.name, strings.ReplaceAll(w, " ", "-"), run, time.Now().UnixNano()),
				Records: c.records, Work: c.work, Spin: c.spin, Concurrency: c.concurrency,
				Partitions: c.partitions, Size: c.size, Keys: c.keys,
			}
			if b.profile != "" && run == b.runs-1 {
				j.Profile = filepath.Join(b.profile, strings.ReplaceAll(c.name+"-"+w, " ", "-")+".pprof")
			}
			if one := int64(c.partitions) * int64(5*time.Second/max(c.work, 1)); c.work > 0 && sequential(w) {
				j.Records = min(j.Records, one) // five seconds' worth
			}
			r, err := b.start(j)
			if err != nil {
				return err
			}
			results[w] = append(results[w], r)
			fmt.Fprintf(os.Stderr, "%s, run %d: %-24s %10.0f/s\n", c.name, run+1, w, r.Rate)
		}
	}
	t := newTable(c, who, results)
	b.tables = append(b.tables, t)
	fmt.Print(t.text())
	return nil
}

// sequential tells of consumers that run one handler at a time a partition.
func sequential(name string) bool {
	switch name {
	case "stock loop", "stock router", "sarama group", "franz-go group", "ackpolicy loop", "ackpolicy router":
		return true
	}
	return false
}

// holds tells whether the topic has all its records.
func (b *bench) holds(cfg *sarama.Config, topic string, records int64) bool {
	client, err := sarama.NewClient(b.brokers, cfg)
	if err != nil {
		return false
	}
	defer client.Close()
	partitions, err := client.Partitions(topic)
	if err != nil {
		return false
	}
	for _, p := range partitions {
		end, err := client.GetOffset(topic, p, sarama.OffsetNewest)
		if err != nil {
			return false
		}
		records -= end
	}
	return records == 0
}

// load fills the topic of a case, once for all cases that can share it.
func (b *bench) load(c bcase) (string, error) {
	topic := fmt.Sprintf("bench-%dp-%db-%dk-%d", c.partitions, c.size, c.keys, c.records)
	if b.loaded[topic] {
		return topic, nil
	}
	cfg := sarama.NewConfig()
	cfg.Producer.Return.Successes = true
	cfg.Producer.Flush.Messages = 2000
	cfg.Producer.Flush.Frequency = 10 * time.Millisecond
	cfg.Metadata.AllowAutoTopicCreation = false
	admin, err := sarama.NewClusterAdmin(b.brokers, cfg)
	if err != nil {
		return "", err
	}
	defer admin.Close()
	if b.holds(cfg, topic, c.records) { // from an earlier bench on this broker
		return topic, nil
	}
	if err := admin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: int32(c.partitions), ReplicationFactor: 1}, false); err != nil {
		return "", fmt.Errorf("create %s: %w (a fresh broker is needed)", topic, err)
	}
	producer, err := sarama.NewAsyncProducer(b.brokers, cfg)
	if err != nil {
		return "", err
	}
	value := make([]byte, c.size)
	go func() {
		for i := range c.records {
			producer.Input() <- &sarama.ProducerMessage{
				Topic: topic, Key: sarama.StringEncoder(fmt.Sprintf("key-%d", i%int64(c.keys))), Value: sarama.ByteEncoder(value),
				Headers: []sarama.RecordHeader{{Key: []byte("_watermill_message_uuid"), Value: []byte("0b9a4a1c-bench")}},
			}
		}
	}()
	for i := int64(0); i < c.records; {
		select {
		case <-producer.Successes():
			i++
		case err := <-producer.Errors():
			return "", err
		}
	}
	if b.loaded == nil {
		b.loaded = map[string]bool{}
	}
	b.loaded[topic] = true
	return topic, producer.Close()
}
