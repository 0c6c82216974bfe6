package ackpolicy

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/write"
)

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
