package letters_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func valueOf(headers []sarama.RecordHeader, key string) (string, bool) {
	for _, h := range headers {
		if string(h.Key) == key {
			return string(h.Value), true
		}
	}
	return "", false
}

// Texts are valid UTF-8 and cut between runes, in every profile: other systems refuse what is not.
func TestHeadersAreText(t *testing.T) {
	t.Parallel()
	for name, profile := range map[string]func(ackpolicy.Letter) []sarama.RecordHeader{
		"ackpolicy": ackpolicy.HeadersAckpolicy, "watermill": ackpolicy.HeadersWatermill,
		"spring": ackpolicy.HeadersSpring, "kafka": ackpolicy.HeadersKafka,
	} {
		for pad := range 4 {
			text := strings.Repeat("x", pad) + strings.Repeat("€", 2000)
			for reason, want := range map[error]string{
				errors.New(text):           "€...",
				errors.New("bad \xff\xfe"): "bad \uFFFD",
				awkwardError{}:             "PANIC",
			} {
				found := false
				for _, h := range profile(ackpolicy.Letter{Reason: reason, Timestamp: time.UnixMilli(1)}) {
					found = found || strings.Contains(string(h.Value), want)
					if strings.Contains(string(h.Key), "-partition") || strings.Contains(string(h.Key), "-offset") || strings.HasSuffix(string(h.Key), "-timestamp") {
						continue // big-endian
					}
					if !utf8.Valid(h.Value) || len(h.Value) > 4096 {
						t.Errorf("%s: header %s has %d bytes, valid UTF-8: %v", name, h.Key, len(h.Value), utf8.Valid(h.Value))
					}
				}
				if !found {
					t.Errorf("%s: no header has %q", name, want)
				}
			}
		}
	}
}

// awkwardError is an application's error that is broken.
type awkwardError struct{}

func (awkwardError) Error() string { panic("in Error") }

func (awkwardError) Unwrap() error { panic("in Unwrap") }

func TestHeadersSpring(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		letter ackpolicy.Letter
		kind   string
		millis int64
	}{
		{ackpolicy.Letter{Timestamp: time.UnixMilli(1234)}, "CreateTime", 1234},
		{ackpolicy.Letter{Timestamp: time.UnixMilli(1234), LogAppendTime: true}, "LogAppendTime", 1234},
		{ackpolicy.Letter{}, "CreateTime", -1}, // as Java's consumer has it
	} {
		test.letter.Reason = testkit.ErrPoison
		headers := ackpolicy.HeadersSpring(test.letter)
		kind, _ := valueOf(headers, "kafka_dlt-original-timestamp-type")
		millis, _ := valueOf(headers, "kafka_dlt-original-timestamp")
		if got := int64(binary.BigEndian.Uint64([]byte(millis))); kind != test.kind || got != test.millis {
			t.Errorf("got %s %d, want %s %d", kind, got, test.kind, test.millis)
		}
	}
}
