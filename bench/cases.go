package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

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
	zipf        float64 // the exponent of the keys' distribution; 0: each key as often
	consumers   []string
	baseline    string // ratios are to it
	limit       string
}

// handler is what it does, in words.
func (c bcase) handler() string {
	switch {
	case c.work > 0 && c.spin > 0:
		return fmt.Sprintf("waits %s and computes for %s", plain(c.work), plain(c.spin))
	case c.work > 0:
		return fmt.Sprintf("waits %s", plain(c.work))
	case c.spin > 0:
		return fmt.Sprintf("computes for %s", plain(c.spin))
	}
	return "does nothing"
}

// describe is the case in words.
func (c bcase) describe() string {
	keys := thousands(c.keys) + " keys"
	if c.zipf > 0 {
		keys += fmt.Sprintf(" by Zipf's law with s = %g", c.zipf)
	}
	partitions := fmt.Sprintf("%d partitions", c.partitions)
	if c.partitions == 1 {
		partitions = "1 partition"
	}
	return fmt.Sprintf("%s; the handler %s, %d at once per partition where the consumer can; %s records of %s B, %s, %s",
		c.about, c.handler(), c.concurrency, thousands(int(c.records)), thousands(c.size), keys, partitions)
}

// plain writes a duration with a space before its unit.
func plain(d time.Duration) string {
	text := d.String()
	i := strings.IndexFunc(text, unicode.IsLetter)
	return text[:i] + " " + text[i:]
}

var cases = []bcase{
	{name: "noop", about: "The bare cost of a record, in a Subscribe loop",
		records: 3_000_000, concurrency: 1, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"memory loop", "sarama group", "franz-go group", "franz-go share", "stock loop", "ackpolicy loop", "ackpolicy batch", "ackpolicy batch router", "ackpolicy batch key",
			"ppc key", "spring batch", "spring record", "share java", "faststream ack", "faststream ack_first"},
		baseline: "stock loop", limit: "memory loop"},
	{name: "router", about: "The same through a Router; ackpolicy with NackOnError.Middleware",
		records: 3_000_000, concurrency: 1, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"memory router", "stock router", "ackpolicy router"},
		baseline:  "stock router", limit: "memory router"},
	{name: "seen", about: "ackpolicy through a Router, with Prometheus metrics, health and an open page, and with OpenTelemetry: every delivery traced, or 1 in 100, by the sampler or by Share",
		records: 1_000_000, concurrency: 1, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"ackpolicy router", "ackpolicy router metered", "ackpolicy router traced", "ackpolicy router traced 1%", "ackpolicy router share 1%"},
		baseline:  "ackpolicy router", limit: "ackpolicy router"},
	{name: "seen-1ms", about: "The same by key",
		records: 400_000, work: time.Millisecond, concurrency: 64, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"ackpolicy key", "ackpolicy key metered", "ackpolicy key traced", "ackpolicy key traced 1%", "ackpolicy key share 1%"},
		baseline:  "ackpolicy key", limit: "ackpolicy key"},
	{name: "1ms", about: "A short wait, as for a fast database",
		records: 200_000, work: time.Millisecond, concurrency: 64, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"memory router", "stock router", "ackpolicy key", "ackpolicy unordered",
			"franz-go share", "ppc key", "ppc unordered", "spring batch", "spring record", "share java", "faststream ack", "faststream ack_first"},
		baseline: "stock router", limit: "memory router"},
	{name: "10ms", about: "A wait, as for a service",
		records: 200_000, work: 10 * time.Millisecond, concurrency: 256, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"memory router", "stock router", "ackpolicy key", "ackpolicy unordered", "franz-go share", "ppc key", "share java"},
		baseline:  "stock router", limit: "memory router"},
	{name: "100ms", about: "A long wait",
		records: 200_000, work: 100 * time.Millisecond, concurrency: 256, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"memory router", "stock router", "ackpolicy key", "ackpolicy unordered", "ppc key"},
		baseline:  "stock router", limit: "memory router"},
	{name: "50us", about: "Computing",
		records: 100_000, spin: 50 * time.Microsecond, concurrency: 4, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"memory router", "stock router", "ackpolicy key", "ppc key"},
		baseline:  "stock router", limit: "memory router"},
	{name: "1p", about: "One partition",
		records: 200_000, work: time.Millisecond, concurrency: 64, partitions: 1, size: 100, keys: 10_000,
		consumers: []string{"memory router", "stock router", "ackpolicy key", "ppc key"},
		baseline:  "stock router", limit: "memory router"},
	{name: "32p", about: "Many partitions",
		records: 200_000, work: time.Millisecond, concurrency: 8, partitions: 32, size: 100, keys: 10_000,
		consumers: []string{"memory router", "stock router", "ackpolicy key", "ppc key"},
		baseline:  "stock router", limit: "memory router"},
	{name: "10keys", about: "Few keys",
		records: 200_000, work: time.Millisecond, concurrency: 64, partitions: 4, size: 100, keys: 10,
		consumers: []string{"stock router", "ackpolicy key", "ackpolicy unordered"},
		baseline:  "stock router"},
	{name: "100kkeys", about: "Many keys",
		records: 200_000, work: time.Millisecond, concurrency: 64, partitions: 4, size: 100, keys: 100_000,
		consumers: []string{"stock router", "ackpolicy key", "ackpolicy unordered"},
		baseline:  "stock router"},
	{name: "zipf", about: "Keys of which few are frequent and many rare",
		records: 200_000, work: time.Millisecond, concurrency: 64, partitions: 4, size: 100, keys: 10_000, zipf: 1.1,
		consumers: []string{"stock router", "ackpolicy key", "ackpolicy unordered", "ppc key"},
		baseline:  "stock router"},
	{name: "1kb", about: "Records of 1 KB, in a Subscribe loop",
		records: 400_000, concurrency: 1, partitions: 4, size: 1000, keys: 10_000,
		consumers: []string{"sarama group", "franz-go group", "stock loop", "ackpolicy loop"},
		baseline:  "stock loop"},
	{name: "10kb", about: "Records of 10 KB, in a Subscribe loop",
		records: 60_000, concurrency: 1, partitions: 4, size: 10_000, keys: 10_000,
		consumers: []string{"sarama group", "franz-go group", "stock loop", "ackpolicy loop", "spring batch"},
		baseline:  "stock loop"},
	{name: "confirm", about: "Each commit confirmed before its handler runs (ConfirmFirst)",
		records: 200_000, concurrency: 64, partitions: 4, size: 100, keys: 10_000,
		consumers: []string{"ackpolicy ack_first", "ackpolicy confirm_first"}},
}

// custom is the case that the flags shape, where no case is named.
var custom = bcase{
	name: "custom", about: "A case from the command line",
	records: 200_000, work: time.Millisecond, concurrency: 64, partitions: 4, size: 100, keys: 10_000,
	consumers: []string{"memory router", "stock router", "ackpolicy key", "ackpolicy unordered",
		"ppc key", "ppc unordered", "spring batch", "faststream ack", "faststream ack_first"},
	baseline: "stock router", limit: "memory router",
}

func printList() {
	for _, c := range cases {
		fmt.Printf("%-10s %s\n", c.name, c.describe())
	}
	fmt.Println()
	for _, c := range consumers {
		fmt.Printf("%-24s %s\n", c.name, c.guarantee)
	}
}

type bench struct {
	brokers     []string
	runs        int
	timeout     time.Duration
	warm, limit time.Duration
	profile     string
	only        []string
	loaded      map[string]bool
	tables      []table
	sections    []section
}

func findCase(name string) (bcase, error) {
	i := slices.IndexFunc(cases, func(c bcase) bool { return c.name == name })
	if i < 0 {
		return bcase{}, fmt.Errorf("no case %q: --list shows them", name)
	}
	return cases[i], nil
}

// there reports whether a consumer can run on this machine.
func there(name string) (bool, error) {
	c, err := find(name)
	if err != nil || c.peer == nil {
		return err == nil, err
	}
	_, err = c.peer.ready()
	return err == nil, nil
}

func (b *bench) run(c bcase) error {
	who := c.consumers
	if len(b.only) > 0 {
		who = b.only
	}
	results := map[string][]result{}
	var able []string
	for _, w := range who {
		ok, err := there(w)
		if err != nil {
			return err
		}
		if ok {
			able = append(able, w)
			results[w] = nil // known, but not run yet
		}
	}
	topic, err := b.load(c)
	if err != nil {
		return err
	}
	for run := range b.runs {
		for _, w := range able { // in turn, so that a drift of the machine hits all alike
			j := job{
				Consumer: w, Brokers: b.brokers, Topic: topic,
				Group:   fmt.Sprintf("bench-%s-%s-%d-%d", c.name, strings.ReplaceAll(w, " ", "-"), run, time.Now().UnixNano()),
				Records: c.records, Work: c.work, Spin: c.spin, Concurrency: c.concurrency,
				Partitions: c.partitions, Size: c.size, Keys: c.keys, Warm: b.warm, Limit: b.limit,
			}
			if b.profile != "" && run == b.runs-1 {
				j.Profile = filepath.Join(b.profile, strings.ReplaceAll(c.name+"-"+w, " ", "-")+".pprof")
			}
			r, err := b.start(j)
			if c, _ := find(w); err != nil && c.peer != nil { // what is not ours must not end the rest
				fmt.Fprintf(os.Stderr, "%s, run %d: %v\n", c.name, run+1, err)
				continue
			}
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

// holds reports whether the topic has all its records.
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

// key gives the number of the key of each record, the same in every bench.
func (c bcase) key() func(record int64) int64 {
	if c.zipf == 0 {
		return func(record int64) int64 { return record % int64(c.keys) }
	}
	z := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), c.zipf, 1, uint64(c.keys-1))
	return func(int64) int64 { return int64(z.Uint64()) }
}

// load fills the topic of a case, once for all cases that can share it.
func (b *bench) load(c bcase) (string, error) {
	topic := fmt.Sprintf("bench-%dp-%db-%dk-%d", c.partitions, c.size, c.keys, c.records)
	if c.zipf > 0 {
		topic += fmt.Sprintf("-zipf%g", c.zipf)
	}
	if b.loaded[topic] {
		return topic, nil
	}
	cfg := sarama.NewConfig()
	cfg.Producer.Return.Successes = true
	cfg.Producer.Flush.Messages = 2000
	cfg.Producer.Flush.Frequency = 10 * time.Millisecond
	cfg.Producer.Retry.Max = 20 // a topic that is only just there has partitions without a leader
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
	key := c.key()
	go func() {
		for i := range c.records {
			producer.Input() <- &sarama.ProducerMessage{
				Topic: topic, Key: sarama.StringEncoder(fmt.Sprintf("key-%d", key(i))), Value: sarama.ByteEncoder(value),
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
