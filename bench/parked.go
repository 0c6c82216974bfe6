package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kgo"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// parkedSpec is what the child of parked runs.
type parkedSpec struct {
	Brokers    []string
	Topic      string
	Records    int
	Partitions int
	Keys       int
	Delay      time.Duration // that the first delivery of a key's first record is nacked with
	Manual     bool          // no nack: all stay pending for Delay, then all are acked
	Buffered   int64         // MaxBufferedBytes
	Profile    string        // a file for the heap while all wait
}

// parkedResult is what it saw.
type parkedResult struct {
	Parked       int           // first deliveries that were nacked or left pending
	ParkedIn     time.Duration // from the first to the last
	ParkedAtOnce int           // how many waited when the first came again, or was acked
	Reread       int           // deliveries after that
	RereadIn     time.Duration
	Duplicates   int // deliveries too many
	Missing      int // records that were not acked
	Disorder     int // records delivered before an earlier one of their key was acked
	Heap         uint64
	Peak         int64
	PeakBefore   int64 // the peak when the first came again
}

func parkedCommand(flags *pflag.FlagSet) (run func() error) {
	spec := parkedSpec{}
	flags.IntVar(&spec.Records, "records", 200_000, "records")
	size := flags.Int("size", 10_000, "bytes of a record's value")
	flags.IntVar(&spec.Partitions, "partitions", 4, "partitions")
	keys := flags.String("keys", "all,10000", "keys, by comma: one run per entry; all is one key per record")
	flags.DurationVar(&spec.Delay, "delay", 2*time.Minute, "delay of the nack; long enough that all are parked before the first is due")
	flags.BoolVar(&spec.Manual, "manual", false, "leave the records pending under Manual for the delay instead, then ack them all")
	flags.Int64Var(&spec.Buffered, "buffered", 64<<20, "MaxBufferedBytes")
	limit := flags.Int64("limit", 256, "MiB of resident memory that the consumer may reach")
	flags.StringVar(&spec.Profile, "profile", "", "write a heap profile to this file while all wait")
	timeout := flags.Duration("timeout", 20*time.Minute, "limit of one run")
	return func() error { return runParked(spec, *keys, *size, *limit, *timeout) }
}

func runParked(spec parkedSpec, keys string, size int, limit int64, timeout time.Duration) (err error) {
	if spec.Brokers, err = brokersFromEnv(); err != nil {
		return err
	}
	counts, err := parkedKeys(keys, spec)
	if err != nil {
		return err
	}
	var v verdict
	for _, spec.Keys = range counts {
		if spec.Topic, err = newTopic(spec.Brokers, "bench-parked", spec.Partitions); err != nil {
			return err
		}
		err = fill(spec.Brokers, spec.Records, func(i int) *kgo.Record {
			key := i % spec.Keys
			return &kgo.Record{
				Topic: spec.Topic, Partition: int32(key % spec.Partitions),
				Key: fmt.Appendf(nil, "key-%d", key), Value: stamp{key: uint32(key)}.encode(size),
			}
		})
		if err != nil {
			return err
		}
		r, err := inChild[parkedResult]("parked", spec, timeout, nil)
		if err != nil {
			return err
		}
		r.report(&v, spec, limit)
	}
	return v.err()
}

// parkedKeys reads the flag. The book knows a record's turn in its key by its
// offset, so the numbers must divide.
func parkedKeys(text string, spec parkedSpec) (counts []int, err error) {
	for word := range strings.SplitSeq(text, ",") {
		n := spec.Records
		if word != "all" {
			if n, err = strconv.Atoi(word); err != nil {
				return nil, fmt.Errorf("--keys: %w", err)
			}
		}
		if n < spec.Partitions || n%spec.Partitions != 0 || spec.Records%n != 0 {
			return nil, fmt.Errorf("--keys: %d must be a multiple of the %d partitions, and divide the %d records", n, spec.Partitions, spec.Records)
		}
		counts = append(counts, n)
	}
	return counts, nil
}

func (r parkedResult) report(v *verdict, spec parkedSpec, limit int64) {
	how := fmt.Sprintf("nacked once with NackAfter(%v)", spec.Delay)
	if spec.Manual {
		how = fmt.Sprintf("left pending for %v, then acked", spec.Delay)
	}
	fmt.Printf("\nparked: %d records, %d keys, %d partitions, %s, MaxBufferedBytes %d MiB\n\n", spec.Records, spec.Keys, spec.Partitions, how, spec.Buffered>>20)
	rate := func(n int, in time.Duration) string { return fmt.Sprintf("%.0f", float64(n)/max(in.Seconds(), 1e-3)) }
	fmt.Println(columns([][]string{
		{"parked", "parked/s", "delivered again or behind", "of them/s", "peak MiB", "until the first is due", "live heap MiB"},
		{fmt.Sprint(r.Parked), rate(r.Parked, r.ParkedIn), fmt.Sprint(r.Reread), rate(r.Reread, r.RereadIn),
			fmt.Sprint(r.Peak >> 20), fmt.Sprint(r.PeakBefore >> 20), fmt.Sprint(r.Heap >> 20)},
	}).Render())
	fmt.Println()
	if r.ParkedAtOnce < r.Parked {
		fmt.Printf("note:    %d of %d waited when the first was due: a longer --delay shows more\n", r.ParkedAtOnce, r.Parked)
	}
	v.want(r.Missing == 0, "%d records were never acked", r.Missing)
	v.want(r.Duplicates == 0, "%d deliveries too many", r.Duplicates)
	v.want(r.Disorder == 0, "%d records delivered before an earlier one of their key was acked", r.Disorder)
	v.want(r.Peak < limit<<20, "peak memory %d MiB, wanted below %d", r.Peak>>20, limit)
}

// parkedBook counts deliveries. It takes a few bytes per record, so that it is the
// consumer's memory that is measured.
type parkedBook struct {
	spec parkedSpec

	mu        sync.Mutex
	delivered [][]uint8 // by partition and offset
	acked     int
	r         parkedResult
	next      []uint32 // by key: the turn of the record that is to be acked next
	first     time.Time
	again     time.Time
	waiting   []*ackpolicy.Delivery // under Manual
	peak      func() int64
	done      chan struct{}
}

// deliver notes a delivery and reports whether this is the one to be parked.
func (b *parkedBook) deliver(d *ackpolicy.Delivery, key uint32) (park bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	p, offset := d.Partition(), d.Offset()
	b.delivered[p][offset]++
	times := b.delivered[p][offset]
	// The records of a key are every Keys-th one: its partition holds them in order.
	turn := uint32(offset) / uint32(b.spec.Keys/b.spec.Partitions)
	park = b.spec.Manual || turn == 0 && times == 1
	if park && times == 1 {
		if b.r.Parked == 0 {
			b.first = now
		}
		b.r.Parked++
		b.r.ParkedIn = now.Sub(b.first)
		return true
	}
	if !b.spec.Manual && turn != b.next[key] {
		b.r.Disorder++
	}
	most := uint8(1)
	if turn == 0 && !b.spec.Manual {
		most = 2
	}
	if times > most {
		b.r.Duplicates++
		return park
	}
	b.ack(now)
	b.next[key] = turn + 1
	return false
}

// ack counts a record that is acked now.
func (b *parkedBook) ack(now time.Time) {
	if b.acked == 0 {
		b.again = now
		b.r.ParkedAtOnce = b.r.Parked
		b.r.PeakBefore = b.peak()
	}
	b.acked++
	b.r.Reread++
	b.r.RereadIn = now.Sub(b.again)
	if b.acked == b.spec.Records {
		close(b.done)
	}
}

func parkedChild(text []byte) (any, error) {
	var spec parkedSpec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, err
	}
	book := &parkedBook{spec: spec, next: make([]uint32, spec.Keys), done: make(chan struct{})}
	book.peak = func() int64 { _, peak := memoryOf("self"); return peak }
	for range spec.Partitions {
		book.delivered = append(book.delivered, make([]uint8, spec.Records/spec.Partitions+1))
	}
	cfg := ackpolicy.SubscriberConfig{
		Kafka:            kafkaConfig(job{Brokers: spec.Brokers, Group: spec.Topic}),
		Ordering:         ackpolicy.OrderByKey,
		MaxBufferedBytes: spec.Buffered,
	}
	logger := errorLogger()
	sub, err := ackpolicy.NewSubscriber(cfg, logger)
	if err != nil {
		return nil, err
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		return nil, err
	}
	policy := ackpolicy.NackOnError
	if spec.Manual {
		policy = ackpolicy.Manual
	}
	router.AddMiddleware(policy.Middleware)
	router.AddConsumerHandler("parked", spec.Topic, sub, func(msg *message.Message) error {
		d, _ := ackpolicy.FromMessage(msg)
		switch park := book.deliver(d, decodeStamp(msg.Payload).key); {
		case spec.Manual:
			book.keep(d)
		case park:
			return ackpolicy.NackAfter(spec.Delay)
		}
		return nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		book.watch(ctx)
	}()
	go func() {
		select {
		case <-book.done:
		case <-ctx.Done():
		}
		_ = router.Close()
	}()
	if err := router.Run(ctx); err != nil {
		return nil, err
	}
	cancel()
	<-watching
	return book.result(), nil
}

// keep holds a delivery that is settled later.
func (b *parkedBook) keep(d *ackpolicy.Delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting = append(b.waiting, d)
}

// watch looks at the heap while everything waits. Under Manual it then acks.
func (b *parkedBook) watch(ctx context.Context) {
	var seen atomic.Int64
	for settled := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
		b.mu.Lock()
		parked, acked, waiting := b.r.Parked, b.acked, b.waiting
		since := time.Since(b.first)
		b.mu.Unlock()
		if parked > 0 && int64(parked) == seen.Swap(int64(parked)) && acked == 0 && b.r.Heap == 0 {
			b.r.Heap = liveHeap()
			writeHeap(b.spec.Profile)
		}
		if !b.spec.Manual || parked == 0 || since < b.spec.Delay {
			continue
		}
		for ; settled < len(waiting); settled++ {
			ok := waiting[settled].Ack()
			b.mu.Lock()
			waiting[settled] = nil
			if ok {
				b.ack(time.Now())
			}
			b.mu.Unlock()
		}
	}
}

func (b *parkedBook) result() parkedResult {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r.Missing = b.spec.Records - b.acked
	b.r.Peak = b.peak()
	return b.r
}

func writeHeap(file string) {
	if file == "" {
		return
	}
	runtime.GC()
	f, err := os.Create(file)
	if err == nil {
		err = pprof.WriteHeapProfile(f)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "no heap profile:", err)
	}
}
