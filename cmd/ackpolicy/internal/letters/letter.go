package letters

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
)

// letter is a record of a dead letter topic, and what its headers say. What they
// do not say is zero, a partition or an offset -1.
type letter struct {
	record     *sarama.ConsumerMessage
	from       int64 // no record lies between this offset and the letter's own
	profile    *profile
	Origin     origin
	Group      string // the consumer group that rejected it
	Handler    string
	Reason     string
	Attempts   int
	Rejections int
	RejectedAt time.Time
	cutOff     bool // it has the beginning of the record's value only
}

// origin is where the letter's record was first.
type origin struct {
	Topic     string
	Partition int32
	Offset    int64
	Timestamp time.Time
}

func (o origin) String() string {
	switch {
	case o.Topic == "":
		return "unknown"
	case o.Partition < 0:
		return o.Topic
	case o.Offset < 0:
		return fmt.Sprintf("%s %d", o.Topic, o.Partition)
	}
	return fmt.Sprintf("%s %d:%d", o.Topic, o.Partition, o.Offset)
}

// id names a letter as --at does.
func (l *letter) id() string { return fmt.Sprintf("%d:%d", l.record.Partition, l.record.Offset) }

func parseLetter(record *sarama.ConsumerMessage, from int64) *letter {
	l := &letter{record: record, from: from, Origin: origin{Partition: -1, Offset: -1}, profile: profileOf(record.Headers)}
	l.cutOff = l.header(ackpolicy.HeaderTruncated) != ""
	if l.profile != nil {
		l.profile.read(l.header, l)
	}
	return l
}

// header returns the last header of that name, "" if there is none.
func (l *letter) header(key string) string {
	for _, h := range slices.Backward(l.record.Headers) {
		if string(h.Key) == key {
			return string(h.Value)
		}
	}
	return ""
}

// sameRejection is equal for letters that are copies of one another: after a crash
// between a letter and the commit behind it, the record is rejected again.
type sameRejection struct {
	topic, group string
	partition    int32
	offset       int64
	rejections   int
}

func (l *letter) rejection() (r sameRejection, ok bool) {
	return sameRejection{
		topic: l.Origin.Topic, group: l.Group, partition: l.Origin.Partition, offset: l.Origin.Offset, rejections: l.Rejections,
	}, l.Origin.Topic != "" && l.Origin.Offset >= 0
}

// What --headers keeps of a letter's headers.
const (
	headersOrigin = "origin"
	headersAll    = "all"
	headersNone   = "none"
)

// headers are those that the record gets on its way back. The record's own stay as
// they are, and in their order.
func (l *letter) headers(keep string) []sarama.RecordHeader {
	var out []sarama.RecordHeader
	for _, h := range l.record.Headers {
		key := string(h.Key)
		drop := l.profile != nil && l.profile.owns(key)
		if l.profile == ackpolicyProfile && keep == headersOrigin {
			drop = drop && !slices.Contains(originHeaders, key)
		}
		if keep == headersNone {
			drop = drop || ackpolicyProfile.owns(key)
		}
		drop = drop || slices.Contains(reducedHeaders, key)
		if keep == headersAll || !drop {
			out = append(out, *h)
		}
	}
	return out
}

var withDigits = regexp.MustCompile(`[\pL\pN_-]*\pN[\pL\pN_-]*`)

// kind is the reason with every word that holds a digit replaced, so that reasons which
// differ by an id only are counted as one.
func (l *letter) kind() string {
	return known(withDigits.ReplaceAllString(cli.Cut(strings.Join(strings.Fields(l.Reason), " "), 100), "#"))
}
