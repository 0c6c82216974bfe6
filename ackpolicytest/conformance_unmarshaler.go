package ackpolicytest

import (
	"fmt"
	"maps"
	"sync"
	"testing"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/ackpolicy/watermill-ackpolicy/internal/record"
)

// TestUnmarshaler tests an Unmarshaler for SubscriberConfig.Kafka. It has to decode the given
// records. If it is a Marshaler too, it has to decode what it has encoded.
func TestUnmarshaler(t *testing.T, u kafka.Unmarshaler, records ...*sarama.ConsumerMessage) {
	decode := func(t *testing.T, r *sarama.ConsumerMessage) (msg *message.Message, err error) {
		t.Helper()
		defer func() {
			if v := recover(); v != nil {
				t.Fatalf("Unmarshal panics: %v; return an error", v)
			}
		}()
		return u.Unmarshal(record.Detached(r))
	}
	if m, ok := u.(kafka.Marshaler); ok {
		t.Run("what it encodes", func(t *testing.T) {
			sent := message.NewMessage("uuid", []byte(`{"id":1}`))
			sent.Metadata.Set("key", "value")
			got, err := decode(t, encoded(t, m, sent))
			if err != nil || got == nil {
				t.Fatalf("Unmarshal of what Marshal returned: %v, %v", got, err)
			}
			if !got.Equals(sent) {
				t.Errorf("UUID %q, payload %q, metadata %v; want %q, %q, %v", got.UUID, got.Payload, got.Metadata, sent.UUID, sent.Payload, sent.Metadata)
			}
		})
	}
	for i, r := range records {
		t.Run(fmt.Sprintf("record %d", i), func(t *testing.T) {
			first, err := decode(t, r)
			if err != nil || first == nil {
				t.Fatalf("Unmarshal: %v, %v", first, err)
			}
			if first.Metadata == nil {
				t.Error("the message has no Metadata: a handler that sets some panics. Use message.NewMessage")
			}
			apart(t, first, func() (*message.Message, error) { return decode(t, r) })
		})
	}
	t.Run("any record", func(t *testing.T) {
		for name, r := range map[string]*sarama.ConsumerMessage{
			"nothing": {}, "a tombstone": {Key: []byte("key")}, "an empty value": {Value: []byte{}},
			"bytes that nobody expects": {Key: []byte{0xff}, Value: []byte("\xff\x00{[\"")},
			"odd headers":               {Value: []byte("value"), Headers: []*sarama.RecordHeader{{}, {Key: []byte{0xff}, Value: []byte{0xff}}}},
		} {
			if msg, err := decode(t, r); msg == nil && err == nil {
				t.Errorf("%s: Unmarshal returns neither a message nor an error", name)
			}
		}
	})
	t.Run("concurrent calls", func(t *testing.T) { // which the race detector watches
		var all sync.WaitGroup
		defer all.Wait()
		for range 8 {
			all.Go(func() {
				for _, r := range records {
					if _, err := u.Unmarshal(record.Detached(r)); err != nil {
						t.Errorf("Unmarshal: %v", err)
					}
				}
			})
		}
	})
}

// apart checks that a message shares nothing with the next one of the same record, which is
// that of the next attempt: what a handler changes, the next attempt must not see.
func apart(t *testing.T, first *message.Message, again func() (*message.Message, error)) {
	t.Helper()
	uuid, payload, metadata := first.UUID, string(first.Payload), maps.Clone(first.Metadata)
	for i := range first.Payload {
		first.Payload[i]++
	}
	for key := range first.Metadata {
		first.Metadata[key] += " changed"
	}
	if first.Metadata != nil {
		first.Metadata["added by a handler"] = "yes"
	}
	second, err := again()
	switch {
	case err != nil || second == nil:
		t.Fatalf("the second Unmarshal of a record: %v, %v", second, err)
	case second == first:
		t.Error("the second Unmarshal of a record returns the same message: its ack is the first one's")
	case string(second.Payload) != payload || !maps.Equal(second.Metadata, metadata):
		t.Errorf("what a handler changes in a message is in the next one of the record: payload %q, metadata %v; want %q, %v",
			second.Payload, second.Metadata, payload, metadata)
	case second.UUID != uuid:
		t.Logf("the UUID differs from attempt to attempt: %q, %q", uuid, second.UUID)
	}
}

func encoded(t *testing.T, m kafka.Marshaler, msg *message.Message) *sarama.ConsumerMessage {
	t.Helper()
	p, err := m.Marshal("topic", msg)
	if err != nil {
		t.Fatal("Marshal:", err)
	}
	r, err := recordFrom(p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// recordFrom returns a record as it would be read.
func recordFrom(m *sarama.ProducerMessage) (r *sarama.ConsumerMessage, err error) {
	r = &sarama.ConsumerMessage{Topic: m.Topic, Partition: m.Partition, Timestamp: m.Timestamp}
	if m.Key != nil {
		r.Key, err = m.Key.Encode()
	}
	if m.Value != nil && err == nil {
		r.Value, err = m.Value.Encode()
	}
	for _, h := range m.Headers {
		r.Headers = append(r.Headers, &h)
	}
	return r, err
}
