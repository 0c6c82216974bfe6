package ackpolicy

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
)

// Names of the headers that HeadersAckpolicy writes. The origin is the first
// one: a letter that is rejected again keeps it.
const (
	HeaderTopic      = "ackpolicy_topic"
	HeaderPartition  = "ackpolicy_partition"
	HeaderOffset     = "ackpolicy_offset"
	HeaderTimestamp  = "ackpolicy_timestamp" // the record's, RFC 3339; not there where it has none
	HeaderGroup      = "ackpolicy_group"
	HeaderHandler    = "ackpolicy_handler"
	HeaderReason     = "ackpolicy_reason"
	HeaderErrors     = "ackpolicy_errors" // the chain of wrapped errors, by type
	HeaderAttempts   = "ackpolicy_attempts"
	HeaderRejectedAt = "ackpolicy_rejected_at" // RFC 3339
	HeaderRejections = "ackpolicy_rejections"  // how often this record became a letter
)

// maxReason bounds what an error may add to a letter, in bytes.
const maxReason = 4096

func header(key, value string) sarama.RecordHeader {
	return sarama.RecordHeader{Key: []byte(key), Value: []byte(value)}
}

// HeadersAckpolicy is this package's own profile.
func HeadersAckpolicy(l Letter) []sarama.RecordHeader {
	headers := []sarama.RecordHeader{
		header(HeaderTopic, l.Topic),
		header(HeaderPartition, strconv.Itoa(int(l.Partition))),
		header(HeaderOffset, strconv.FormatInt(l.Offset, 10)),
	}
	if !l.Timestamp.IsZero() {
		headers = append(headers, header(HeaderTimestamp, l.Timestamp.Format(time.RFC3339Nano)))
	}
	return append(headers,
		header(HeaderGroup, l.Group),
		header(HeaderHandler, l.Handler),
		header(HeaderReason, reason(l.Reason)),
		header(HeaderErrors, cut(chain(l.Reason))),
		header(HeaderAttempts, strconv.Itoa(l.Attempts)),
		header(HeaderRejectedAt, l.RejectedAt.Format(time.RFC3339Nano)),
	)
}

// HeadersWatermill is the profile of Watermill's PoisonQueue middleware.
func HeadersWatermill(l Letter) []sarama.RecordHeader {
	return []sarama.RecordHeader{
		header(middleware.ReasonForPoisonedKey, reason(l.Reason)),
		header(middleware.PoisonedTopicKey, l.Topic),
		header(middleware.PoisonedHandlerKey, l.Handler),
		header(middleware.PoisonedSubscriberKey, l.Subscriber),
	}
}

// HeadersSpring is the profile of Spring Kafka's DeadLetterPublishingRecoverer.
// Numbers are big-endian bytes, as there, and a timestamp that is none is -1.
func HeadersSpring(l Letter) []sarama.RecordHeader {
	timestamp, kind := int64(-1), "CreateTime" // by the names of Java's TimestampType
	if !l.Timestamp.IsZero() {
		timestamp = l.Timestamp.UnixMilli()
	}
	if l.LogAppendTime {
		kind = "LogAppendTime"
	}
	return []sarama.RecordHeader{
		header("kafka_dlt-original-topic", l.Topic),
		{Key: []byte("kafka_dlt-original-partition"), Value: bigEndian(int64(l.Partition), 4)},
		{Key: []byte("kafka_dlt-original-offset"), Value: bigEndian(l.Offset, 8)},
		{Key: []byte("kafka_dlt-original-timestamp"), Value: bigEndian(timestamp, 8)},
		header("kafka_dlt-original-timestamp-type", kind),
		header("kafka_dlt-original-consumer-group", l.Group),
		header("kafka_dlt-exception-fqcn", fmt.Sprintf("%T", l.Reason)),
		header("kafka_dlt-exception-message", reason(l.Reason)),
	}
}

// HeadersKafka is the profile of Kafka's own dead letter queues for share groups (KIP-1191).
func HeadersKafka(l Letter) []sarama.RecordHeader {
	return []sarama.RecordHeader{
		header("__dlq.errors.topic", l.Topic),
		header("__dlq.errors.partition", strconv.Itoa(int(l.Partition))),
		header("__dlq.errors.offset", strconv.FormatInt(l.Offset, 10)),
		header("__dlq.errors.group", l.Group),
		header("__dlq.errors.delivery.count", strconv.Itoa(l.Attempts)),
		header("__dlq.errors.message", reason(l.Reason)),
	}
}

func bigEndian(v int64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[n-1-i] = byte(v >> (8 * i))
	}
	return b
}

// reason is an error's text.
func reason(err error) string { return cut(textOf(err)) }

// cut makes of a text one that is not too long, in valid UTF-8: other systems refuse
// headers that are not.
func cut(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxReason {
		return s
	}
	n := maxReason - len("...")
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}

// chain names the types of a wrapped error, the outermost first.
func chain(err error) (text string) {
	defer func() {
		if recover() != nil { // in an Unwrap method
			text += " < ?"
		}
	}()
	for n := 0; err != nil && n < 100; n++ { // one may wrap itself
		if n > 0 {
			text += " < "
		}
		text += fmt.Sprintf("%T", err)
		err = errors.Unwrap(err)
	}
	return text
}

// letterHeaders puts a letter's headers behind the record's own. Those of an
// earlier letter are replaced, so that a record that is rejected again and again
// does not grow, but for its first origin, which stays.
func letterHeaders(record []*sarama.RecordHeader, letter []sarama.RecordHeader) []sarama.RecordHeader {
	origin := []string{HeaderTopic, HeaderPartition, HeaderOffset, HeaderTimestamp}
	out := make([]sarama.RecordHeader, 0, len(record)+len(letter)+1)
	rejections := 1
	again := slices.ContainsFunc(record, func(h *sarama.RecordHeader) bool { return string(h.Key) == HeaderTopic })
	ours := slices.ContainsFunc(letter, func(l sarama.RecordHeader) bool { return string(l.Key) == HeaderTopic })
	for _, h := range record {
		key := string(h.Key)
		if ours && key == HeaderRejections {
			n, _ := strconv.Atoi(string(h.Value))
			rejections = n + 1
			continue
		}
		replaced := slices.ContainsFunc(letter, func(l sarama.RecordHeader) bool { return string(l.Key) == key })
		if !replaced || (again && slices.Contains(origin, key)) {
			out = append(out, *h)
		}
	}
	for _, l := range letter {
		if !(again && slices.Contains(origin, string(l.Key))) {
			out = append(out, l)
		}
	}
	if ours {
		out = append(out, header(HeaderRejections, strconv.Itoa(rejections)))
	}
	return out
}
