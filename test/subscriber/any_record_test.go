package subscriber_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var fuzzSeed = flag.Uint64("fuzzseed", 1, "seed of the records of TestAnyRecord")

// A thousand records of all kinds, in batches of all kinds: under every policy each is delivered as it was written, and
// the partition ends committed. Those that are rejected become letters with the same bytes.
func TestAnyRecord(t *testing.T) {
	t.Parallel()
	const partitions, records = 3, 1000
	broker := brokertest.New(t) // large fetches would keep the others' broker busy
	topic, at := testkit.FakeTopicOf(t, broker, partitions, "max.message.bytes=12000000")
	written := writeAny(t, broker, topic, partitions, records)
	orders := []ackpolicy.Ordering{ackpolicy.OrderByKey, ackpolicy.OrderByPartition, ackpolicy.Unordered}
	for i, policy := range testkit.Policies {
		order := orders[i%len(orders)]
		t.Run(fmt.Sprint(policy, " by ", order), func(t *testing.T) {
			dlq := brokertest.Topic(t)
			cfg := testkit.Config(brokertest.Group(t), at, testkit.Ordering(order, 0), testkit.ReadCommitted)
			if cfg.MaxBufferedBytes = 4 << 20; !broker.Real() {
				// kfake forgets to say which transactions were aborted where a response is full, and with
				// less memory than this our subscriber asks for responses of a megabyte.
				cfg.MaxBufferedBytes = 256 << 20
			}
			cfg.DeadLetter = ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}, Topic: func(string) string { return dlq }}
			var mu sync.Mutex
			seen := map[testkit.RecordID]int{}
			s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
				id := testkit.RecordID{Partition: d.Partition(), Offset: d.Offset()}
				mu.Lock()
				seen[id]++
				mu.Unlock()
				w, ok := written[id]
				if !ok {
					t.Errorf("%v was delivered, and never written or aborted", id)
					return nil
				}
				if err := w.differs(msg, d); err != nil {
					t.Errorf("%v: %v", id, err)
				}
				fails := w.fails && d.Attempt() == 1
				switch {
				case policy == ackpolicy.Manual && fails:
					d.Nack()
				case policy == ackpolicy.Manual:
					d.Ack()
				case fails && d.Offset()%2 == 0:
					panic(testkit.ErrBoom)
				case fails:
					return testkit.ErrBoom
				}
				return nil
			}, policy.Middleware)
			ends := map[int32]int64{}
			for id := range written {
				ends[id.Partition] = max(ends[id.Partition], id.Offset+1)
			}
			for p, end := range ends {
				testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), cfg.Kafka.ConsumerGroup, topic, p, end, testkit.Patience))
			}
			s.Stop()
			rejected := map[int32]int{}
			for id, w := range written {
				want := 1
				if w.fails && (policy == ackpolicy.NackOnError || policy == ackpolicy.Manual) {
					want = 2
				}
				if seen[id] != want {
					t.Errorf("%v was delivered %d times, want %d", id, seen[id], want)
				}
				if w.fails && policy == ackpolicy.RejectOnError {
					rejected[id.Partition]++
				}
			}
			for p, n := range rejected {
				for _, letter := range testkit.LettersOf(t, broker, dlq, p, n) {
					var offset int64
					_, err := fmt.Sscan(testkit.Headers(letter)[ackpolicy.HeaderOffset], &offset)
					testkit.Check(t, err)
					if err := written[testkit.RecordID{Partition: p, Offset: offset}].differsRaw(letter); err != nil {
						t.Errorf("letter of %d/%d: %v", p, offset, err)
					}
				}
			}
		})
	}
}

// anyRecord is one as it was written.
type anyRecord struct {
	brokertest.Record
	fails bool // its handler, the first time
}

func (w anyRecord) differs(msg *message.Message, d *ackpolicy.Delivery) error {
	names := map[string]string{}
	for _, h := range w.Headers {
		names[string(h.Key)] = string(h.Value)
	}
	switch {
	case !bytes.Equal(msg.Payload, w.Value):
		return fmt.Errorf("%d bytes of payload, written %d", len(msg.Payload), len(w.Value))
	case !bytes.Equal(d.Key(), w.Key) || (d.Key() == nil) != (w.Key == nil):
		return fmt.Errorf("key %q, written %q", d.Key(), w.Key)
	case !d.Timestamp().Equal(w.Timestamp):
		return fmt.Errorf("timestamp %v, written %v", d.Timestamp(), w.Timestamp)
	case len(msg.Metadata) != len(names):
		return fmt.Errorf("%d metadata, written %d", len(msg.Metadata), len(names))
	}
	for name, value := range names {
		if msg.Metadata[name] != value {
			return fmt.Errorf("metadata %q is %q, written %q", name, msg.Metadata[name], value)
		}
	}
	return nil
}

func (w anyRecord) differsRaw(r *sarama.ConsumerMessage) error {
	if !bytes.Equal(r.Value, w.Value) || (r.Value == nil) != (w.Value == nil) || !bytes.Equal(r.Key, w.Key) || (r.Key == nil) != (w.Key == nil) {
		return fmt.Errorf("key %.20q, value %.20q, written %.20q, %.20q", r.Key, r.Value, w.Key, w.Value)
	}
	if len(r.Headers) < len(w.Headers) {
		return fmt.Errorf("%d headers, written %d", len(r.Headers), len(w.Headers))
	}
	for i, h := range w.Headers {
		if got := r.Headers[i]; !bytes.Equal(got.Key, h.Key) || !bytes.Equal(got.Value, h.Value) || (got.Value == nil) != (h.Value == nil) {
			return fmt.Errorf("header %d is %q: %q, written %q: %q", i, got.Key, got.Value, h.Key, h.Value)
		}
	}
	return nil
}

// writeAny writes the records in batches, some of them in transactions, and returns those that were not aborted.
func writeAny(t *testing.T, broker *brokertest.Broker, topic string, partitions int32, n int) map[testkit.RecordID]anyRecord {
	t.Helper()
	rnd := rand.New(rand.NewPCG(*fuzzSeed, 0))
	written := map[testkit.RecordID]anyRecord{}
	codecs := []sarama.CompressionCodec{
		sarama.CompressionNone, sarama.CompressionGZIP, sarama.CompressionSnappy, sarama.CompressionLZ4, sarama.CompressionZSTD,
	}
	producers := map[string]sarama.SyncProducer{}
	producer := func(codec sarama.CompressionCodec, transactional bool) sarama.SyncProducer {
		name := fmt.Sprint(codec, transactional)
		if producers[name] == nil {
			cfg := sarama.NewConfig()
			brokertest.WriteOnce(cfg)
			cfg.Producer.Compression = codec
			cfg.Producer.MaxMessageBytes = 11_000_000
			if transactional {
				cfg.Producer.Transaction.ID = brokertest.Group(t)
			}
			p, err := sarama.NewSyncProducer(broker.Addrs(), cfg)
			testkit.Check(t, err)
			producers[name] = p
		}
		return producers[name]
	}
	stamp := testkit.AnHourAgo()
	for made := 0; made < n; {
		kind := rnd.IntN(10) // 8: in a transaction, 9: in one that is aborted
		p := producer(codecs[rnd.IntN(len(codecs))], kind >= 8)
		var batch []*sarama.ProducerMessage
		var records []anyRecord
		partition := rnd.Int32N(partitions)
		for range min(1+rnd.IntN(40), n-made) {
			r := anyRecordOf(rnd, made)
			r.Timestamp = stamp.Add(time.Duration(made) * time.Millisecond)
			made++
			msg := &sarama.ProducerMessage{Topic: topic, Partition: partition, Headers: r.Headers, Timestamp: r.Timestamp}
			if r.Key != nil {
				msg.Key = sarama.ByteEncoder(r.Key)
			}
			if r.Value != nil {
				msg.Value = sarama.ByteEncoder(r.Value)
			}
			batch, records = append(batch, msg), append(records, r)
		}
		if kind >= 8 {
			testkit.Check(t, p.BeginTxn())
		}
		testkit.Check(t, p.SendMessages(batch))
		switch kind {
		case 8:
			testkit.Check(t, p.CommitTxn())
		case 9:
			testkit.Check(t, p.AbortTxn())
			continue
		}
		for i, msg := range batch {
			written[testkit.RecordID{Partition: partition, Offset: msg.Offset}] = records[i]
		}
	}
	for _, p := range producers {
		testkit.Check(t, p.Close())
	}
	return written
}

func anyRecordOf(rnd *rand.Rand, i int) anyRecord {
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	r := anyRecord{fails: rnd.IntN(8) == 0}
	switch rnd.IntN(5) {
	case 0: // none
	case 1:
		r.Key = []byte{}
	case 2:
		r.Key = random(1 + rnd.IntN(200))
	default:
		r.Key = fmt.Append(nil, "key-", rnd.IntN(20))
	}
	switch size := rnd.IntN(200); {
	case i == 500:
		r.Value, r.fails = random(10_000_000), false
	case size == 0:
		r.Value, r.fails = random(1_000_000), false // with a letter's headers it would be too large for the default limit
	case size < 4:
		r.Value = bytes.Repeat([]byte("compressible "), 20_000)
	case size < 20: // a tombstone
	case size < 40:
		r.Value = []byte{}
	default:
		r.Value = random(rnd.IntN(2000))
	}
	headers := 0
	switch kind := rnd.IntN(100); {
	case kind == 0:
		headers = 3000
	case kind < 50:
		headers = rnd.IntN(6)
	}
	for h := range headers {
		header := sarama.RecordHeader{Key: fmt.Append(nil, "header-", h), Value: random(rnd.IntN(30))}
		switch rnd.IntN(6) {
		case 0:
			header.Key = []byte("twice")
		case 1:
			header.Key = random(1 + rnd.IntN(10)) // hardly UTF-8
		case 2:
			header.Key = []byte{}
		case 3:
			header.Value = nil
		}
		r.Headers = append(r.Headers, header)
	}
	return r
}
