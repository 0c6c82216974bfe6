package ackpolicy

import (
	"context"
	"math"
	"time"

	"github.com/IBM/sarama"
)

// DeadLetter stores rejected records somewhere else. Send returns nil once the
// letter is stored: only then may the record's offset be committed. After an error it is
// called again, a moment later, until the letter is stored; what becomes of a letter whose
// error is permanent (it has a method Permanent() bool that returns true, or wraps one
// that has) is for SubscriberConfig.OnUnstorable to say.
//
// Send is called from up to 64 goroutines at once, 16 per partition, so that letters do
// not wait for each other. Those of one key are sent one after the other, in the order of
// their rejections; a later one goes first only where the earlier one's error is permanent.
// ctx ends when the partition is no longer ours. A Send that does not return then is
// waited for no longer than half a second, and its outcome no longer counts.
type DeadLetter interface {
	Send(ctx context.Context, record *sarama.ConsumerMessage, letter Letter) error
}

// Letter says why a record was rejected.
type Letter struct {
	Topic      string // where the record is from
	Partition  int32
	Offset     int64
	Timestamp  time.Time // the record's; zero where its producer wrote none
	Group      string
	Handler    string // its name in the Router; empty where no middleware of ours ran
	Subscriber string
	Reason     error // never nil
	Attempts   int   // how often it was delivered since it was assigned to us
	RejectedAt time.Time
	// LogAppendTime is set where the broker, not the producer, gives the topic's records their timestamps.
	LogAppendTime bool
}

// Unstorable says what becomes of a rejected record whose letter cannot be stored: the
// destination refuses it for good. For DeadLetterTopic that is a letter that is too large,
// has a timestamp out of bounds, or no key where the topic is compacted.
type Unstorable uint8

const (
	// UnstorableKeep keeps the record and logs an error. Nothing is committed past it,
	// others and their letters go on. It is tried again now and then, and by
	// the next owner of the partition.
	UnstorableKeep Unstorable = iota
	// UnstorableReduce stores what can be stored: the beginning of the value, with
	// HeaderTruncated; the time of the rejection in place of the timestamp, with
	// HeaderOriginalTimestamp; the record's origin in place of a null key, with
	// HeaderNullKey. For DeadLetterTopic only. What cannot be stored even so is kept.
	UnstorableReduce
	// UnstorableGiveUp gives the record up, with an error in the log that names it.
	UnstorableGiveUp
)

// sendLetter has a rejected record's letter stored.
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
	dead := s.deadLetter
	send := func(ctx context.Context) error {
		record, err := d.kafka.Original(ctx, s.sub.config.Kafka.Tracer != nil)
		if err != nil {
			return err
		}
		letter.LogAppendTime = d.kafka.LogAppendTime()
		defer d.kafka.Calls("DeadLetter.Send")()
		return dead.Send(ctx, record, letter)
	}
	d.kafka.Letter(send, func(err error, givenUp bool) {
		tellAndWait(s, "DeadLettered", s.sub.config.Hooks.DeadLettered, DeadLetteredEvent{letter.Topic, letter.Partition, letter.Offset, letter.Reason, err, givenUp})
	})
}

// openDeadLetter returns the destination of a subscription's letters.
func (s *subscription) openDeadLetter(ctx context.Context, topic string) (DeadLetter, error) {
	c := &s.sub.config
	switch dead := c.DeadLetter.(type) {
	case DeadLetterTopic:
		return dead.open(ctx, c, topic, s.logger)
	case *DeadLetterTopic:
		return dead.open(ctx, c, topic, s.logger)
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

// The times that sarama can write.
var (
	firstTime = time.UnixMilli(0)
	lastTime  = time.Unix(0, math.MaxInt64)
)

// recordTime is a record's timestamp, zero where it has none. A producer that knows no
// time writes -1 as its batch's, and some write records relative to that: sarama
// reads the year 1 for -1, and counts from there.
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
