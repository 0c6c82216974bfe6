package letters_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// noise is what no codec makes smaller.
func noise(n int) []byte {
	b := make([]byte, n)
	random := rand.New(rand.NewPCG(1, 1))
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

// newDeadLetterTopic makes a topic, and its dead letter topic with settings.
func newDeadLetterTopic(t *testing.T, settings ...string) (topic string) {
	t.Helper()
	topic = testkit.NewTopic(t, 1)
	testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), topic+".dlq", 1, settings...))
	return topic
}

// Of 1,000 rejected records some are too large for a dead letter topic that takes less than their own topic.
// All others are stored within 2 s, the log has said at Subscribe what to expect, and OnUnstorable decides about those.
// It measures: no other test runs meanwhile.
func TestWrongLettersAmongOthers(t *testing.T) {
	const records, every, limit, size = 1000, 50, 20_000, 30_000
	for name, on := range map[string]ackpolicy.Unstorable{
		"keep": ackpolicy.UnstorableKeep, "reduce": ackpolicy.UnstorableReduce, "give up": ackpolicy.UnstorableGiveUp,
	} {
		t.Run(name, func(t *testing.T) {
			topic := newDeadLetterTopic(t, fmt.Sprint("max.message.bytes=", limit))
			all := testkit.Numbered(records)
			for i := 3; i < records; i += every {
				all[i].Value = noise(size)
			}
			testkit.Produce(t, topic, 0, all...)
			cfg := testkit.Config(brokertest.Group(t), dead(ackpolicy.DeadLetterTopic{}), testkit.Ordering(ackpolicy.OrderByKey, 64))
			cfg.OnUnstorable = on
			s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
			s.Wait(t, records)
			began := time.Now()
			want := int64(records - records/every)
			if on == ackpolicy.UnstorableReduce {
				want = records
			}
			testkit.Eventually(t, "the letters", func() bool {
				end, err := brokertest.EndOffset(testkit.Shared.Addrs(), topic+".dlq", 0)
				return err == nil && end == want
			})
			if took := time.Since(began); took > 2*time.Second*testkit.Slower {
				t.Errorf("all others were stored after %v", took)
			}
			stored := int64(records)
			if on == ackpolicy.UnstorableKeep {
				stored = 3
			}
			testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, stored)
			s.Stop()
			testkit.WantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, stored)
			errors := s.Log.At("error")
			if len(testkit.Containing(errors, "accepts less than its source", "setting=max.message.bytes")) != 1 {
				t.Errorf("Subscribe reported nothing: %v", errors)
			}
			switch on {
			case ackpolicy.UnstorableKeep:
				if lines := testkit.Containing(errors, "refused for good", "record is kept", "max.message.bytes"); len(lines) == 0 || len(lines) > 2 {
					t.Errorf("the log: %v", errors)
				}
			case ackpolicy.UnstorableGiveUp:
				if lines := testkit.Containing(errors, "refused for good", "given up", "max.message.bytes"); len(lines) != records/every {
					t.Errorf("%d lines", len(lines))
				}
			case ackpolicy.UnstorableReduce:
				reduced := 0
				for _, letter := range testkit.Letters(t, topic+".dlq", 0, records) {
					if got := testkit.Headers(letter)[ackpolicy.HeaderTruncated]; got != "" {
						reduced++
						if got != strconv.Itoa(size) || !bytes.HasPrefix(noise(size), letter.Value) || len(letter.Value) < limit*3/4 {
							t.Errorf("a letter of %d bytes says %s", len(letter.Value), got)
						}
					}
				}
				if reduced != records/every {
					t.Errorf("%d are reduced", reduced)
				}
			}
		})
	}
}

// Text that its producer compressed becomes letters, which are no larger.
func TestLettersOfCompressedRecords(t *testing.T) {
	t.Parallel()
	const records, size = 11, 5_000_000
	topic := newDeadLetterTopic(t)
	cfg := sarama.NewConfig()
	cfg.Producer.Compression = sarama.CompressionGZIP
	cfg.Producer.MaxMessageBytes = 2 * size
	cfg.Producer.Return.Successes = true
	producer, err := sarama.NewSyncProducer(testkit.Shared.Addrs(), cfg)
	testkit.Check(t, err)
	defer producer.Close()
	text := bytes.Repeat([]byte("all work and no play makes Jack a dull boy\n"), size/43)
	for range records {
		_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: topic, Value: sarama.ByteEncoder(text)})
		testkit.Check(t, err)
	}
	c := testkit.Config(brokertest.Group(t), dead(ackpolicy.DeadLetterTopic{}))
	s := testkit.Consume(t, c, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, c.Kafka.ConsumerGroup, topic, 0, records)
	s.Stop()
	for _, letter := range testkit.Letters(t, topic+".dlq", 0, records) {
		if !bytes.Equal(letter.Value, text) {
			t.Fatalf("a letter of %d bytes is not its record", len(letter.Value))
		}
	}
}

// A destination with bounds on timestamps, or that is compacted, refuses letters. (kfake takes all.)
func TestLettersThatKafkaRefuses(t *testing.T) {
	t.Parallel()
	if !testkit.Shared.Real() {
		t.Skip("kfake checks neither timestamps nor keys")
	}
	old := time.Now().Add(-48 * time.Hour).Truncate(time.Millisecond)
	for name, test := range map[string]struct {
		setting string
		wrong   brokertest.Record
		reduced func(record, letter *sarama.ConsumerMessage) bool
	}{
		"too old": {"message.timestamp.before.max.ms=86400000", brokertest.Record{Key: []byte("k"), Timestamp: old}, func(_, l *sarama.ConsumerMessage) bool {
			return testkit.Headers(l)[ackpolicy.HeaderOriginalTimestamp] == old.UTC().Format(time.RFC3339Nano) && time.Since(l.Timestamp) < time.Hour
		}},
		"no key": {"cleanup.policy=compact", brokertest.Record{Value: []byte("x")}, func(r, l *sarama.ConsumerMessage) bool {
			return testkit.Headers(l)[ackpolicy.HeaderNullKey] == "true" && string(l.Key) == fmt.Sprintf("%s-0-%s", r.Topic, testkit.Headers(l)[ackpolicy.HeaderOffset])
		}},
	} {
		for _, on := range []ackpolicy.Unstorable{ackpolicy.UnstorableKeep, ackpolicy.UnstorableReduce} {
			t.Run(fmt.Sprint(name, on), func(t *testing.T) {
				t.Parallel()
				const records, every = 500, 50
				topic := newDeadLetterTopic(t, test.setting)
				all := make([]brokertest.Record, records)
				for i := range all {
					all[i] = brokertest.KeyValue(fmt.Sprint(i), "x")
					if i%every == 3 {
						all[i] = test.wrong
					}
				}
				testkit.Produce(t, topic, 0, all...)
				cfg := testkit.Config(brokertest.Group(t), dead(ackpolicy.DeadLetterTopic{}))
				cfg.OnUnstorable = on
				s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
				want, stored := records-records/every, int64(3)
				if on == ackpolicy.UnstorableReduce {
					want, stored = records, records
				}
				testkit.Eventually(t, "the letters", func() bool {
					end, err := brokertest.EndOffset(testkit.Shared.Addrs(), topic+".dlq", 0)
					return err == nil && end == int64(want)
				})
				testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, stored)
				s.Stop()
				testkit.WantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, stored)
				setting, _, _ := strings.Cut(test.setting, "=")
				if len(testkit.Containing(s.Log.At("error"), "accepts less than its source", "setting="+setting)) != 1 {
					t.Errorf("Subscribe reported nothing: %v", s.Log.At("error"))
				}
				reduced := 0
				for _, letter := range testkit.Letters(t, topic+".dlq", 0, want) {
					if test.reduced(&sarama.ConsumerMessage{Topic: topic}, letter) {
						reduced++
					}
				}
				if reduced != want-(records-records/every) {
					t.Errorf("%d letters are reduced", reduced)
				}
			})
		}
	}
}

// A dead letter topic that somebody deletes is created again if Create says so, and the log says that it was.
func TestDeadLetterTopicIsDeleted(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1, testkit.Numbered(1)...)
	cfg := testkit.Config(brokertest.Group(t), testkit.DeadLetterTopic)
	s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 1)
	admin, err := sarama.NewClusterAdmin(testkit.Shared.Addrs(), sarama.NewConfig())
	testkit.Check(t, err)
	defer admin.Close()
	testkit.Check(t, admin.DeleteTopic(topic+".dlq"))
	testkit.Eventually(t, "the topic is gone", func() bool {
		topics, err := admin.DescribeTopics([]string{topic + ".dlq"})
		return err == nil && topics[0].Err == sarama.ErrUnknownTopicOrPartition
	})
	testkit.Produce(t, topic, 0, testkit.Numbered(20)...)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 21)
	s.Stop()
	testkit.Letters(t, topic+".dlq", 0, 20)
	if len(testkit.Containing(s.Log.At("error"), "was deleted and is created again")) != 1 {
		t.Error("nothing was reported")
	}
}

// A broker that refuses what Create adds of its own gets the topic without that.
func TestDeadLetterTopicUnderAPolicy(t *testing.T) {
	t.Parallel()
	for name, refused := range map[string][]string{
		"retention": {"retention.ms"}, "size": {"max.message.bytes"}, "both": {"retention.ms", "max.message.bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := brokertest.NewFake(t)
			topic := brokertest.Topic(t)
			testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, 1))
			_, err := brokertest.Produce(broker.Addrs(), topic, 0, testkit.Numbered(1)...)
			testkit.Check(t, err)
			broker.Kfake().ControlKey(int16(kmsg.CreateTopics), func(r kmsg.Request) (kmsg.Response, error, bool) {
				broker.Kfake().KeepControl()
				req := r.(*kmsg.CreateTopicsRequest)
				for _, asked := range req.Topics {
					for _, c := range asked.Configs {
						for _, name := range refused {
							if c.Name != name {
								continue
							}
							resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
							no := kmsg.NewCreateTopicsResponseTopic()
							no.Topic, no.ErrorCode = asked.Topic, kerr.PolicyViolation.Code
							resp.Topics = append(resp.Topics, no)
							return resp, nil, true
						}
					}
				}
				return nil, nil, false
			})
			cfg := testkit.Config(brokertest.Group(t), testkit.DeadLetterTopic)
			cfg.Kafka.Brokers = broker.Addrs()
			s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
			testkit.Check(t, brokertest.WaitCommitted(broker.Addrs(), cfg.Kafka.ConsumerGroup, topic, 0, 1, testkit.Patience))
			s.Stop()
			testkit.LettersOf(t, broker, topic+".dlq", 0, 1)
			if lines := testkit.Containing(s.Log.At("error"), "created without settings that the broker refuses"); len(lines) != 1 || len(testkit.Containing(lines, refused...)) != 1 {
				t.Errorf("the log: %v", lines)
			}
		})
	}
}

// produceRaw writes a batch as only other clients do.
func produceRaw(t *testing.T, topic string, batch *sarama.RecordBatch) {
	t.Helper()
	cfg := sarama.NewConfig()
	client, err := sarama.NewClient(testkit.Shared.Addrs(), cfg)
	testkit.Check(t, err)
	defer client.Close()
	leader, err := client.Leader(topic, 0)
	testkit.Check(t, err)
	batch.Version, batch.ProducerID, batch.ProducerEpoch, batch.FirstSequence = 2, -1, -1, -1
	batch.LastOffsetDelta = int32(len(batch.Records) - 1)
	for i, r := range batch.Records {
		r.OffsetDelta = int64(i)
	}
	req := &sarama.ProduceRequest{Version: 3, RequiredAcks: sarama.WaitForAll, Timeout: 10_000}
	req.AddBatch(topic, 0, batch)
	resp, err := leader.Produce(req)
	testkit.Check(t, err)
	if block := resp.GetBlock(topic, 0); block.Err != sarama.ErrNoError {
		t.Fatal(block.Err)
	}
}

// A record whose producer wrote no timestamp, or one relative to none, has a letter with what it had.
func TestLettersOfRecordsWithoutTimestamp(t *testing.T) {
	t.Parallel()
	topic := testkit.NewTopic(t, 1)
	at := testkit.AnHourAgo()
	produceRaw(t, topic, &sarama.RecordBatch{Records: []*sarama.Record{{Value: []byte("none")}, {Value: []byte("none either")}}})
	produceRaw(t, topic, &sarama.RecordBatch{MaxTimestamp: at, Records: []*sarama.Record{
		{Value: []byte("relative to none"), TimestampDelta: at.Sub(time.UnixMilli(-1))},
	}})
	for name, profile := range map[string]func(ackpolicy.Letter) []sarama.RecordHeader{"ackpolicy": ackpolicy.HeadersAckpolicy, "spring": ackpolicy.HeadersSpring} {
		t.Run(name, func(t *testing.T) {
			to := brokertest.Topic(t)
			cfg := testkit.Config(brokertest.Group(t), dead(ackpolicy.DeadLetterTopic{
				Create: &sarama.TopicDetail{}, Headers: profile, Topic: func(string) string { return to },
			}))
			s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
			testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 3)
			s.Stop()
			for _, letter := range testkit.Letters(t, to, 0, 3) {
				want := time.Time{}
				if strings.HasPrefix(string(letter.Value), "relative") {
					want = at
				}
				if !letter.Timestamp.Equal(want) {
					t.Errorf("%s: the letter's timestamp is %v, want %v", letter.Value, letter.Timestamp, want)
				}
				header, there := testkit.Headers(letter)[ackpolicy.HeaderTimestamp]
				if got, _ := time.Parse(time.RFC3339Nano, header); name == "ackpolicy" && (there == want.IsZero() || !got.Equal(want)) {
					t.Errorf("%s: the header says %q", letter.Value, header)
				}
			}
		})
	}
}

// The profile that names the kind of the timestamp names the right one.
func TestLettersOfATopicThatStampsItsRecords(t *testing.T) {
	t.Parallel()
	topic := brokertest.Topic(t)
	testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), topic, 1, "message.timestamp.type=LogAppendTime"))
	testkit.Produce(t, topic, 0, testkit.Numbered(1)...)
	cfg := testkit.Config(brokertest.Group(t), dead(ackpolicy.DeadLetterTopic{Create: &sarama.TopicDetail{}, Headers: ackpolicy.HeadersSpring}))
	s := testkit.Consume(t, cfg, topic, testkit.RejectAll, ackpolicy.NackOnError.Middleware)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, 1)
	s.Stop()
	if got := testkit.Headers(testkit.Letters(t, topic+".dlq", 0, 1)[0])["kafka_dlt-original-timestamp-type"]; got != "LogAppendTime" {
		t.Errorf("got %q", got)
	}
}

func TestOnUnstorableIsValidated(t *testing.T) {
	t.Parallel()
	for _, cfg := range []ackpolicy.SubscriberConfig{
		testkit.Config("group", func(c *ackpolicy.SubscriberConfig) { c.OnUnstorable = 77 }),
		testkit.Config("group", dead(&testkit.Flaky{}), func(c *ackpolicy.SubscriberConfig) { c.OnUnstorable = ackpolicy.UnstorableReduce }),
	} {
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "OnUnstorable") {
			t.Errorf("got %v", err)
		}
	}
	if err := errors.Join(testkit.Config("group", testkit.DeadLetterTopic, func(c *ackpolicy.SubscriberConfig) { c.OnUnstorable = ackpolicy.UnstorableReduce }).Validate()); err != nil {
		t.Error(err)
	}
}
