package memory_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Records that wait for long are pushed out of memory and read again from the
// broker when their time comes: each once more, in the order of its key.
func TestWaitingRecordsAreReadAgain(t *testing.T) {
	t.Parallel()
	const records, keys = 1000, 50
	topic, cfg := testkit.HeavyTopic(t, records, keys)
	var mu sync.Mutex
	first, last := map[string]int64{}, map[string]int64{}
	parked := 0
	s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		mu.Lock()
		defer mu.Unlock()
		if want := fmt.Sprint(d.Offset()); !bytes.HasPrefix(msg.Payload, []byte(want+".")) || len(msg.Payload) != len(want)+10_000 {
			t.Errorf("offset %d came with the payload %.10q", d.Offset(), msg.Payload)
		}
		key := string(d.Key())
		if d.Attempt() == 1 && d.Offset() < keys {
			first[key] = d.Offset()
			parked++
			return ackpolicy.NackAfter(3 * time.Second) // and so all behind it in its key wait too
		}
		if before, ok := last[key]; ok && d.Offset() <= before || !ok && d.Offset() != first[key] {
			t.Errorf("%s: offset %d after %d", key, d.Offset(), before)
		}
		last[key] = d.Offset()
		return nil
	}, ackpolicy.NackOnError.Middleware)
	s.Wait(t, records+keys)
	s.Stop()
	if parked != keys {
		t.Errorf("%d records were nacked, want %d", parked, keys)
	}
	testkit.WantCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, records)
}

// A record that retention removed while it waited is given up, and reported, and
// does not hold the partition.
func TestWaitingRecordIsGone(t *testing.T) {
	t.Parallel()
	const records, keys = 400, 4
	topic, cfg := testkit.HeavyTopic(t, records, keys)
	testkit.DeadLetterTopic(&cfg)
	gone := make(chan ackpolicy.SettledEvent, records)
	cfg.Hooks.Settled = func(e ackpolicy.SettledEvent) {
		if errors.Is(e.Reason, ackpolicy.ErrRecordGone) {
			gone <- e
		}
	}
	s := testkit.Consume(t, cfg, topic, func(_ *message.Message, d *ackpolicy.Delivery) error {
		if d.Attempt() == 1 && d.Offset() < keys {
			return ackpolicy.NackAfter(6 * time.Second) // enough to remove them meanwhile
		}
		return nil
	}, ackpolicy.NackOnError.Middleware)
	testkit.Produce(t, topic, 0, brokertest.KeyValue("another", "the last"))
	s.Wait(t, keys+1) // all are fetched
	testkit.Check(t, brokertest.DeleteRecords(cfg.Kafka.Brokers, topic, 0, records))
	e := testkit.Await(t, "a record that is gone", gone)
	if e.Status != ackpolicy.Rejected {
		t.Errorf("a record that is gone was %v", e.Status)
	}
	if len(testkit.Containing(s.Log.At("error"), "Record lost", fmt.Sprintf("kafka_partition_offset=%d", e.Offset))) == 0 {
		t.Error("the loss is no error line")
	}
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, records+1)
	s.Stop()
}

// An application that settles late may keep more records pending than
// MaxBufferedBytes holds. What it nacks or rejects in the end is read again.
func TestPendingRecordsArePushedOut(t *testing.T) {
	t.Parallel()
	const records, keys = 500, 50
	topic, cfg := testkit.HeavyTopic(t, records, keys)
	testkit.DeadLetterTopic(&cfg)
	s := testkit.Consume(t, cfg, topic, func(msg *message.Message, d *ackpolicy.Delivery) error {
		if want := fmt.Sprint(d.Offset()); !bytes.HasPrefix(msg.Payload, []byte(want+".")) {
			t.Errorf("offset %d attempt %d came with the payload %.10q", d.Offset(), d.Attempt(), msg.Payload)
		}
		if d.Attempt() > 1 {
			return ackpolicy.ErrAck
		}
		return nil
	}, ackpolicy.Manual.Middleware)
	s.Wait(t, records) // ten times what may be in memory
	for _, d := range s.All()[:records] {
		if want := fmt.Sprint("key-", d.Offset()%keys); string(d.Key()) != want || d.Timestamp().IsZero() {
			t.Errorf("offset %d: key %q, want %q; timestamp %v", d.Offset(), d.Key(), want, d.Timestamp())
		}
		settle := d.Ack
		switch d.Offset() {
		case 3:
			settle = d.Nack
		case 7:
			settle = func() bool { return d.Reject(testkit.ErrPoison) }
		}
		if !settle() {
			t.Errorf("offset %d: %v", d.Offset(), d.Status())
		}
	}
	s.Wait(t, records+1)
	testkit.WaitCommitted(t, cfg.Kafka.ConsumerGroup, topic, 0, records)
	s.Stop()
	if last := s.All()[records]; testkit.Name(last) != "3#2" {
		t.Errorf("delivered again: %s", testkit.Name(last))
	}
	letter := testkit.Letters(t, topic+".dlq", 0, 1)[0]
	if want := append([]byte("7"), bytes.Repeat([]byte{'.'}, 10_000)...); !bytes.Equal(letter.Value, want) || string(letter.Key) != "key-7" {
		t.Errorf("the letter has key %q, %d bytes %.10q", letter.Key, len(letter.Value), letter.Value)
	}
}
