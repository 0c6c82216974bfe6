package subscriber_test

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// scrawl writes over all that a slice may be used for.
func scrawl(b []byte) {
	for i := range b {
		b[i] = '#'
	}
	_ = append(b, bytes.Repeat([]byte{'#'}, 200)...)
}

// scrawling is an Unmarshaler that writes over the record that it is given.
type scrawling struct{ kafka.DefaultMarshaler }

func (u scrawling) Unmarshal(r *sarama.ConsumerMessage) (*message.Message, error) {
	msg, err := u.DefaultMarshaler.Unmarshal(r)
	if err != nil {
		return nil, err
	}
	msg.Payload = bytes.Clone(r.Value)
	for _, h := range r.Headers {
		scrawl(h.Key)
		scrawl(h.Value)
		*h = sarama.RecordHeader{}
	}
	scrawl(r.Key)
	scrawl(r.Value)
	_ = append(r.Headers, &sarama.RecordHeader{})
	*r = sarama.ConsumerMessage{}
	return msg, nil
}

// What a handler or an Unmarshaler writes into the bytes that it is given, or behind
// them, is seen by nobody else: neither the records behind it nor the record's own next
// delivery and its letter.
func TestHandlersOwnTheirBytes(t *testing.T) {
	t.Parallel()
	for kind, unmarshaler := range map[string]kafka.Unmarshaler{"default": nil, "custom": scrawling{}} {
		for _, size := range []int{10, 1000} { // small copies share memory
			t.Run(fmt.Sprint(kind, " ", size), func(t *testing.T) {
				t.Parallel()
				const n = 50
				value := func(offset int64) string { return fmt.Sprint(offset, " ", strings.Repeat("v", size)) }
				var records []brokertest.Record
				for i := range int64(n) {
					r := brokertest.KeyValue(fmt.Sprint("key ", i), value(i))
					r.Headers = []sarama.RecordHeader{{Key: []byte("h"), Value: fmt.Append(nil, "header ", i)}}
					records = append(records, r)
				}
				topic := testkit.NewTopic(t, 1, records...)
				cfg := testkit.Config(brokertest.Group(t))
				cfg.Kafka.Unmarshaler = unmarshaler
				testkit.DeadLetterTopic(&cfg)
				s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
					if got, want := string(msg.Payload), value(d.Offset()); got != want {
						t.Errorf("%s: payload %.20q, want %.20q", testkit.Name(d), got, want)
					}
					if got, want := string(d.Key()), fmt.Sprint("key ", d.Offset()); got != want {
						t.Errorf("%s: key %q, want %q", testkit.Name(d), got, want)
					}
					if got, want := msg.Metadata["h"], fmt.Sprint("header ", d.Offset()); got != want {
						t.Errorf("%s: header %q, want %q", testkit.Name(d), got, want)
					}
					key, _ := kafka.MessageKeyFromCtx(msg.Context())
					scrawl(msg.Payload)
					scrawl(d.Key())
					scrawl(key)
					if d.Attempt() < 3 {
						return ackpolicy.ErrNack
					}
					return ackpolicy.ErrReject
				}, ackpolicy.NackOnError.Middleware)
				s.Wait(t, 3*n)
				stored := map[string]string{}
				for _, letter := range testkit.Letters(t, topic+".dlq", 0, n) { // in any order
					stored[string(letter.Key)] = string(letter.Value)
				}
				for i := range int64(n) {
					if got, want := stored[fmt.Sprint("key ", i)], value(i); got != want {
						t.Errorf("letter of offset %d: %.20q, want %.20q", i, got, want)
					}
				}
			})
		}
	}
}

// decrypts is an interceptor that changes records in place, as a decryption does.
type decrypts struct{ calls atomic.Int64 }

func (i *decrypts) OnConsume(r *sarama.ConsumerMessage) {
	i.calls.Add(1)
	for k := range r.Value {
		r.Value[k] ^= 1
	}
	r.Headers = append(r.Headers, &sarama.RecordHeader{Key: []byte("intercepted"), Value: []byte("yes")})
	panic("and then fails") // sarama passes that over
}

// Interceptors see a copy of the record for each of its deliveries, whether it was pushed out of
// memory meanwhile or not; its letter has it as it is in Kafka.
func TestInterceptors(t *testing.T) {
	t.Parallel()
	const records, keys = 500, 50
	topic, cfg := testkit.HeavyTopic(t, records, keys)
	testkit.DeadLetterTopic(&cfg)
	var i decrypts
	cfg.Kafka.OverwriteSaramaConfig.Consumer.Interceptors = []sarama.ConsumerInterceptor{&i}
	s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		want := fmt.Append(nil, d.Offset(), ".")
		for k := range want {
			want[k] ^= 1
		}
		if !bytes.HasPrefix(msg.Payload, want) || msg.Metadata["intercepted"] != "yes" {
			t.Errorf("%s came with the payload %.10q and the metadata %v", testkit.Name(d), msg.Payload, msg.Metadata)
		}
		switch {
		case d.Attempt() == 1 && d.Offset() < keys:
			return ackpolicy.NackAfter(3 * time.Second) // and so all behind it in its key wait, out of memory
		case d.Attempt() == 1:
			return ackpolicy.ErrNack
		}
		return ackpolicy.ErrReject
	}, ackpolicy.NackOnError.Middleware)
	s.Wait(t, 2*records)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, records)
	if got := i.calls.Load(); got != 2*records {
		t.Errorf("the interceptor was called %d times, want %d: once per delivery", got, 2*records)
	}
	for _, letter := range testkit.Letters(t, topic+".dlq", 0, records) {
		_, of, _ := bytes.Cut(letter.Key, []byte("-"))
		offset, _, _ := bytes.Cut(letter.Value, []byte("."))
		if _, ok := testkit.Headers(letter)["intercepted"]; ok || len(offset) < 1 || len(of) < 1 || len(letter.Value) != len(offset)+10_000 {
			t.Errorf("the letter %q has the headers %v and %d bytes %.10q", letter.Key, testkit.Headers(letter), len(letter.Value), letter.Value)
		}
	}
	if lines := testkit.Containing(s.Log.At("error"), "Interceptor failed", "panicked"); len(lines) < 1 || len(lines) > 3 {
		t.Errorf("%d lines say that it panicked, want one, and ever rarer ones: %v", len(lines), lines)
	}
}
