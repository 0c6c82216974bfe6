package ackpolicy

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/write"
)

// DeadLetter stores rejected records. Send returns nil once the letter is stored; only
// then may the record's offset be committed. If Send returns an error, it is called again
// a moment later, until the letter is stored. If the error is permanent (it, or an error
// that it wraps, has a method Permanent() bool that returns true),
// SubscriberConfig.OnUnstorable says what happens.
//
// Send is called from up to 64 goroutines at once, 16 per partition, so that letters do
// not wait for each other. Letters with the same key are sent one after the other, in the
// order of their rejections; a later one is sent first only if the error of the earlier
// one is permanent. ctx ends when the partition is released. The release waits for Send
// for half a second more; after that its result is ignored.
type DeadLetter interface {
	Send(ctx context.Context, record *sarama.ConsumerMessage, letter Letter) error
}

// Letter says why a record was rejected.
type Letter struct {
	Topic      string // where the record is from
	Partition  int32
	Offset     int64
	Timestamp  time.Time // of the record; zero if its producer wrote none
	Group      string
	Handler    string // its name in the Router; empty if our middleware did not run
	Subscriber string
	Reason     error // never nil
	Attempts   int   // how often the record was delivered
	RejectedAt time.Time
	// LogAppendTime reports whether the broker, not the producer, sets the timestamps
	// of the topic's records.
	LogAppendTime bool
}

// Unstorable says what happens to a rejected record whose letter cannot be stored because
// the destination refuses it for good. A DeadLetterTopic refuses a letter that is too
// large, has a timestamp out of bounds, or has no key if the topic is compacted.
type Unstorable uint8

const (
	// UnstorableKeep keeps the record and logs an error. Nothing is committed past it;
	// other records and letters are not affected. The letter is sent again from time to
	// time, and by the next owner of the partition.
	UnstorableKeep Unstorable = iota
	// UnstorableReduce stores what can be stored: the beginning of the value, with
	// HeaderTruncated; the time of the rejection instead of the timestamp, with
	// HeaderOriginalTimestamp; the origin of the record instead of a null key, with
	// HeaderNullKey. It requires a DeadLetterTopic. If the letter cannot be stored even
	// then, the record is kept.
	UnstorableReduce
	// UnstorableGiveUp gives the record up, and logs an error that names it.
	UnstorableGiveUp
)

// sendLetter starts to store the letter of a rejected record.
func (s *subscription) sendLetter(d *Delivery, reason error) {
	letter := Letter{
		Topic: d.Topic(), Partition: d.Partition(), Offset: d.Offset(), Timestamp: recordTime(d.Timestamp()),
		Group:      s.sub.config.Kafka.ConsumerGroup,
		Subscriber: s.sub.String(),
		Reason:     sound(orNoReason(reason)),
		Attempts:   d.Attempt(),
		RejectedAt: time.Now(),
		Handler:    d.handler(),
	}
	dead, transactional := s.destination(d.settings()), d.transactional()
	send := func(ctx context.Context) error {
		record, err := d.kafka.Original(ctx, s.sub.config.Kafka.Tracer != nil)
		if err != nil {
			return err
		}
		letter.LogAppendTime = d.kafka.LogAppendTime()
		defer d.kafka.Calls("DeadLetter.Send")()
		if transactional {
			return s.joinLetter(ctx, d, dead, record, letter)
		}
		return dead.Send(ctx, record, letter)
	}
	d.kafka.Letter(send, func(err error, givenUp bool) {
		tellAndWait(s, "Hooks.DeadLettered", s.sub.config.Hooks.DeadLettered, DeadLetteredEvent{d.ref(), letter.Reason, err, givenUp})
	})
}

// openDeadLetter returns a destination that is ready for letters of a topic.
func (s *subscription) openDeadLetter(ctx context.Context, configured DeadLetter, topic string) (DeadLetter, error) {
	c := &s.sub.config
	switch dead := configured.(type) {
	case DeadLetterTopic:
		return dead.open(ctx, c, topic, s.loggerOf(topic))
	case *DeadLetterTopic:
		return dead.open(ctx, c, topic, s.loggerOf(topic))
	case DeadLetterPublisher:
		return newLetterPublisher(dead), nil
	case *DeadLetterPublisher:
		return newLetterPublisher(*dead), nil
	default:
		return dead, nil
	}
}

func closeDeadLetter(d DeadLetter) error {
	if t, ok := d.(*letterTopic); ok {
		return t.close()
	}
	return nil
}

func topicFor(name func(string) string, origin string) string {
	if name != nil {
		return name(origin)
	}
	return origin + ".dlq"
}

// The range of times that sarama can write.
var (
	firstTime = time.UnixMilli(0)
	lastTime  = time.Unix(0, math.MaxInt64)
)

// recordTime returns a record's timestamp, or zero if it has none. A producer without a
// clock writes -1 as the timestamp of the batch, and some write those of the records
// relative to it. sarama turns -1 into the year 1, and counts from there.
func recordTime(t time.Time) time.Time {
	if t.IsZero() || !t.Before(firstTime) {
		return t
	}
	t = time.UnixMilli(-1).Add(t.Sub(time.Time{}))
	if t.Before(firstTime) {
		return time.Time{}
	}
	return t
}

// Names of the headers of a letter that differs from its record, under every profile.
const (
	HeaderTruncated         = "ackpolicy_truncated"          // the length of the whole value; the letter has its beginning
	HeaderOriginalTimestamp = "ackpolicy_original_timestamp" // the timestamp of the record, RFC 3339; the letter has another
	HeaderNullKey           = "ackpolicy_null_key"           // "true": the record has no key
)

// mostReductions limits the attempts: each halves the value.
const mostReductions = 40

// reduced changes a letter that was refused so that the topic may accept it. It reports
// whether it changed anything.
func (t *letterTopic) reduced(err error, r *write.Record, record *sarama.ConsumerMessage, letter Letter) bool {
	switch {
	case !is[*write.Refused](err):
		return false
	case tooLarge(err):
		if len(r.Value) == 0 {
			return false
		}
		setHeader(r, HeaderTruncated, strconv.Itoa(len(record.Value)))
		n := len(r.Value) / 2
		if room := t.limit - (r.Size() - len(r.Value)); room > 0 && room < len(r.Value) {
			n = room
		}
		for range utf8.UTFMax - 1 {
			if n > 0 && !utf8.RuneStart(r.Value[n]) {
				n--
			}
		}
		r.Value = r.Value[:n:n]
		return true
	case errors.Is(err, sarama.ErrInvalidTimestamp):
		return replaceTimestamp(r, letter)
	case errors.Is(err, sarama.ErrInvalidRecord) && r.Key == nil:
		r.Key = fmt.Appendf(nil, "%s-%d-%d", letter.Topic, letter.Partition, letter.Offset)
		setHeader(r, HeaderNullKey, "true")
		return true
	}
	return false
}

// replaceTimestamp sets a letter's timestamp to the time of the rejection. It reports
// whether that changed it.
func replaceTimestamp(r *write.Record, letter Letter) bool {
	now := letter.RejectedAt
	if r.Timestamp.Equal(now) {
		return false
	}
	setHeader(r, HeaderOriginalTimestamp, r.Timestamp.UTC().Format(time.RFC3339Nano))
	r.Timestamp = now
	return true
}

func setHeader(r *write.Record, key, value string) {
	r.Headers = slices.DeleteFunc(r.Headers, func(h sarama.RecordHeader) bool { return string(h.Key) == key })
	r.Headers = append(r.Headers, header(key, value))
}

func (t *letterTopic) tellReduced(r write.Record, record *sarama.ConsumerMessage) {
	fields := watermill.LogFields{"kafka_partition": record.Partition, "kafka_partition_offset": record.Offset}
	if len(r.Value) < len(record.Value) {
		fields["value_bytes"], fields["letter_value_bytes"] = len(record.Value), len(r.Value)
		t.logger.Error("Dead letter stored with only the beginning of its record's value", errors.New("the whole of it is too large for the dead letter topic"), fields)
		return
	}
	t.logger.Info("Dead letter stored, but it differs from its record: its headers say how", fields)
}
