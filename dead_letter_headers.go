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

// Names of the headers that HeadersAckpolicy writes. Topic, partition, offset and
// timestamp are those of the first rejection: a letter that is rejected again keeps them.
const (
	HeaderTopic      = "ackpolicy_topic"
	HeaderPartition  = "ackpolicy_partition"
	HeaderOffset     = "ackpolicy_offset"
	HeaderTimestamp  = "ackpolicy_timestamp" // of the record, RFC 3339; absent if it has none
	HeaderGroup      = "ackpolicy_group"
	HeaderHandler    = "ackpolicy_handler"
	HeaderReason     = "ackpolicy_reason"
	HeaderErrors     = "ackpolicy_errors" // the types of the wrapped errors
	HeaderAttempts   = "ackpolicy_attempts"
	HeaderRejectedAt = "ackpolicy_rejected_at" // RFC 3339
	HeaderRejections = "ackpolicy_rejections"  // how often the record became a letter
)

// maxReason limits the text of an error in a letter, in bytes.
const maxReason = 4096

func header(key, value string) sarama.RecordHeader {
	return sarama.RecordHeader{Key: []byte(key), Value: []byte(value)}
}

// HeaderProfile returns the headers of a letter: HeadersAckpolicy, HeadersWatermill,
// HeadersSpring, HeadersKafka, or a function of the application. The first four have names:
// ackpolicy, watermill, spring and kafka.
type HeaderProfile func(Letter) []sarama.RecordHeader

var (
	profileNames = []string{"ackpolicy", "watermill", "spring", "kafka"}
	profiles     = []HeaderProfile{HeadersAckpolicy, HeadersWatermill, HeadersSpring, HeadersKafka}
)

// HeadersAckpolicy returns the headers of this package's own profile.
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

// HeadersWatermill returns the headers that Watermill's PoisonQueue middleware writes.
func HeadersWatermill(l Letter) []sarama.RecordHeader {
	return []sarama.RecordHeader{
		header(middleware.ReasonForPoisonedKey, reason(l.Reason)),
		header(middleware.PoisonedTopicKey, l.Topic),
		header(middleware.PoisonedHandlerKey, l.Handler),
		header(middleware.PoisonedSubscriberKey, l.Subscriber),
	}
}

// HeadersSpring returns the headers that Spring Kafka's DeadLetterPublishingRecoverer
// writes. Numbers are big-endian bytes, as there; a missing timestamp is -1.
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

// HeadersKafka returns the headers of Kafka's dead letter queues for share groups
// (KIP-1191).
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

// reason returns the text of an error.
func reason(err error) string { return cut(textOf(err)) }

// cut shortens a text to maxReason and makes it valid UTF-8, without which other systems
// refuse headers.
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

// chain returns the types of a wrapped error, the outermost first.
func chain(err error) (text string) {
	defer func() {
		if recover() != nil { // in an Unwrap method
			text += " < ?"
		}
	}()
	for n := 0; err != nil && n < 100; n++ { // an error may wrap itself
		if n > 0 {
			text += " < "
		}
		text += fmt.Sprintf("%T", err)
		err = errors.Unwrap(err)
	}
	return text
}

// letterHeaders appends the headers of a letter to those of the record. Headers of an
// earlier letter are replaced, so that a record does not grow with each rejection; only
// its first origin stays.
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
