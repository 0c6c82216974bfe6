package letters

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// profile is a way to write on a letter why it is one.
type profile struct {
	name string
	owns func(key string) bool
	// read fills in what the letter's headers say. They are the profile's own.
	read func(get func(key string) string, l *letter)
}

var (
	ackpolicyProfile = &profile{name: "ackpolicy", owns: oneOf(slices.Concat(originHeaders, rejectionHeaders)), read: readAckpolicy}
	watermillProfile = &profile{name: "watermill", owns: oneOf(watermillHeaders), read: readWatermill}
	springProfile    = &profile{name: "spring", owns: startsWith("kafka_dlt-"), read: readSpring}
	kafkaProfile     = &profile{name: "kafka", owns: startsWith("__dlq.errors."), read: readKafka}
)

// originHeaders are those by which a record that is rejected again is known: the
// library keeps the first four and counts on in the last one.
var originHeaders = []string{
	ackpolicy.HeaderTopic, ackpolicy.HeaderPartition, ackpolicy.HeaderOffset, ackpolicy.HeaderTimestamp, ackpolicy.HeaderRejections,
}

// rejectionHeaders are about one rejection only.
var rejectionHeaders = []string{
	ackpolicy.HeaderGroup, ackpolicy.HeaderHandler, ackpolicy.HeaderReason, ackpolicy.HeaderErrors,
	ackpolicy.HeaderAttempts, ackpolicy.HeaderRejectedAt,
}

// reducedHeaders are about a letter that is not the whole record.
var reducedHeaders = []string{ackpolicy.HeaderTruncated, ackpolicy.HeaderOriginalTimestamp, ackpolicy.HeaderNullKey}

var watermillHeaders = []string{"reason_poisoned", "topic_poisoned", "handler_poisoned", "subscriber_poisoned"}

func oneOf(keys []string) func(string) bool {
	return func(key string) bool { return slices.Contains(keys, key) }
}

func startsWith(prefix string) func(string) bool {
	return func(key string) bool { return strings.HasPrefix(key, prefix) }
}

// profileOf returns the profile of the last rejection: a letter of a letter may
// have several, and what is written last stands last. A record that came back and
// died again may have the headers of its origin anywhere: they decide only where
// there is nothing else. Nil: there is no profile.
func profileOf(headers []*sarama.RecordHeader) *profile {
	var found *profile
	for _, h := range slices.Backward(headers) {
		switch key := string(h.Key); {
		case slices.Contains(rejectionHeaders, key):
			return ackpolicyProfile
		case watermillProfile.owns(key):
			return watermillProfile
		case springProfile.owns(key):
			return springProfile
		case kafkaProfile.owns(key):
			return kafkaProfile
		case slices.Contains(originHeaders, key):
			found = ackpolicyProfile
		}
	}
	return found
}

func readAckpolicy(get func(string) string, l *letter) {
	l.Origin.Topic = get(ackpolicy.HeaderTopic)
	l.Origin.Partition = number[int32](get(ackpolicy.HeaderPartition))
	l.Origin.Offset = number[int64](get(ackpolicy.HeaderOffset))
	l.Origin.Timestamp = moment(get(ackpolicy.HeaderTimestamp))
	l.Group = get(ackpolicy.HeaderGroup)
	l.Handler = get(ackpolicy.HeaderHandler)
	l.Reason = get(ackpolicy.HeaderReason)
	l.Attempts = max(0, number[int](get(ackpolicy.HeaderAttempts)))
	l.Rejections = max(0, number[int](get(ackpolicy.HeaderRejections)))
	l.RejectedAt = moment(get(ackpolicy.HeaderRejectedAt))
}

func readWatermill(get func(string) string, l *letter) {
	l.Origin.Topic = get("topic_poisoned")
	l.Handler = get("handler_poisoned")
	l.Reason = get("reason_poisoned")
}

func readSpring(get func(string) string, l *letter) {
	l.Origin.Topic = get("kafka_dlt-original-topic")
	if v, ok := bigEndian(get("kafka_dlt-original-partition"), 4); ok {
		l.Origin.Partition = int32(v)
	}
	if v, ok := bigEndian(get("kafka_dlt-original-offset"), 8); ok {
		l.Origin.Offset = v
	}
	if v, ok := bigEndian(get("kafka_dlt-original-timestamp"), 8); ok {
		l.Origin.Timestamp = time.UnixMilli(v).UTC()
	}
	l.Group = get("kafka_dlt-original-consumer-group")
	l.Reason = get("kafka_dlt-exception-message")
}

func readKafka(get func(string) string, l *letter) {
	l.Origin.Topic = get("__dlq.errors.topic")
	l.Origin.Partition = number[int32](get("__dlq.errors.partition"))
	l.Origin.Offset = number[int64](get("__dlq.errors.offset"))
	l.Group = get("__dlq.errors.group")
	l.Attempts = max(0, number[int](get("__dlq.errors.delivery.count")))
	l.Reason = get("__dlq.errors.message")
}

// number is -1 where the text is none, or one that does not fit.
func number[N int | int32 | int64](text string) N {
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || v < 0 || int64(N(v)) != v {
		return -1
	}
	return N(v)
}

func bigEndian(text string, size int) (v int64, ok bool) {
	if len(text) != size {
		return 0, false
	}
	for i := range len(text) {
		v = v<<8 | int64(text[i])
	}
	if size == 4 {
		v = int64(int32(v))
	}
	return v, v >= 0
}

// moment is zero where the text is no time.
func moment(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}
