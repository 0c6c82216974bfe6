package letters

import (
	"testing"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
)

// A letter without the whole of its record does not go back; one whose key or timestamp was
// replaced goes back with what the record had.
func TestSendReducedLetters(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	at := time.Now().Add(-50 * time.Hour).Truncate(time.Millisecond)
	for i, more := range [][]sarama.RecordHeader{
		{header(ackpolicy.HeaderTruncated, "5000")},
		{header(ackpolicy.HeaderNullKey, "true"), header(ackpolicy.HeaderOriginalTimestamp, at.UTC().Format(time.RFC3339Nano))},
	} {
		profile := ackpolicy.HeadersWatermill(b.sample(ackpolicy.Letter{Offset: int64(i)})) // which knows no timestamp
		b.put(b.dlq, 0, brokertest.Record{Key: []byte("instead"), Value: []byte{byte('a' + i)}, Headers: append(profile, more...)})
	}
	b.want(exitUndelivered, []string{"Sent 1 letter.", "1 letter cannot be sent, the first is 0:0", "beginning"}, "send", "--timestamp", "original", "--first-run")
	b.wantValues(0, "b")
	sent := b.read(b.origin, 0, sarama.ReadCommitted)[0]
	if sent.Key != nil || !sent.Timestamp.Equal(at) || len(sent.Headers) != 0 {
		t.Errorf("it went back with key %q, timestamp %v, headers %v", sent.Key, sent.Timestamp, sent.Headers)
	}
	b.wantStored(0, 0)
}
