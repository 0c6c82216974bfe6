package letters

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/record"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// What the library writes under each profile is read, and nothing of it stays.
func TestProfiles(t *testing.T) {
	t.Parallel()
	rejected := time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)
	l := ackpolicy.Letter{
		Topic: "orders", Partition: 3, Offset: 1 << 40, Timestamp: rejected.Add(-time.Hour).Truncate(time.Millisecond), Group: "billing", Handler: "charge",
		Subscriber: "sub", Reason: errors.New("no money"), Attempts: 5, RejectedAt: rejected,
	}
	own := []*sarama.RecordHeader{{Key: []byte("h"), Value: []byte("\xff")}, {Key: []byte("h")}, {Key: []byte{}, Value: []byte{}}}
	at := origin{Topic: "orders", Partition: 3, Offset: 1 << 40, Timestamp: l.Timestamp}
	for _, test := range []struct {
		profile *profile
		headers []sarama.RecordHeader
		want    letter
	}{
		{ackpolicyProfile, ackpolicy.HeadersAckpolicy(l), letter{Origin: at, Group: "billing", Handler: "charge", Reason: "no money", Attempts: 5, RejectedAt: rejected}},
		{watermillProfile, ackpolicy.HeadersWatermill(l), letter{Origin: origin{"orders", -1, -1, time.Time{}}, Handler: "charge", Reason: "no money"}},
		{springProfile, ackpolicy.HeadersSpring(l), letter{Origin: at, Group: "billing", Reason: "no money"}},
		{kafkaProfile, ackpolicy.HeadersKafka(l), letter{Origin: origin{"orders", 3, 1 << 40, time.Time{}}, Group: "billing", Reason: "no money", Attempts: 5}},
	} {
		t.Run(test.profile.name, func(t *testing.T) {
			t.Parallel()
			record := &sarama.ConsumerMessage{Headers: slices.Clone(own)}
			for _, h := range test.headers {
				record.Headers = append(record.Headers, &h)
			}
			got := parseLetter(record, 0)
			test.want.record, test.want.profile = record, test.profile
			if !reflect.DeepEqual(*got, test.want) {
				t.Errorf("got %+v\nwant %+v", *got, test.want)
			}
			wantHeaders(t, got.headers(headersNone), own)
			wantHeaders(t, got.headers(headersAll), record.Headers)
			if test.profile != ackpolicyProfile {
				wantHeaders(t, got.headers(headersOrigin), own)
			}
		})
	}
}

func wantHeaders(t *testing.T, got []sarama.RecordHeader, want []*sarama.RecordHeader) {
	t.Helper()
	same := slices.EqualFunc(got, want, func(a sarama.RecordHeader, b *sarama.RecordHeader) bool { return reflect.DeepEqual(a, *b) })
	if !same {
		t.Errorf("headers: got %q", got)
	}
}

func TestWatermillsNames(t *testing.T) {
	t.Parallel()
	want := []string{middleware.ReasonForPoisonedKey, middleware.PoisonedTopicKey, middleware.PoisonedHandlerKey, middleware.PoisonedSubscriberKey}
	if !slices.Equal(watermillHeaders, want) {
		t.Errorf("got %v, want %v", watermillHeaders, want)
	}
}

// The last rejection counts; what an earlier one wrote is the record's own.
func TestProfileOfALetterOfALetter(t *testing.T) {
	t.Parallel()
	h := func(keys ...string) (all []*sarama.RecordHeader) {
		for _, key := range keys {
			all = append(all, &sarama.RecordHeader{Key: []byte(key)})
		}
		return all
	}
	for _, test := range []struct {
		headers []*sarama.RecordHeader
		want    *profile
		kept    []string
	}{
		{h("a"), nil, []string{"a"}},
		{h("ackpolicy_topic", "a"), ackpolicyProfile, []string{"ackpolicy_topic", "a"}},
		{h("reason_poisoned", "ackpolicy_topic", "ackpolicy_reason"), ackpolicyProfile, []string{"reason_poisoned", "ackpolicy_topic"}},
		// came back, and died again under Watermill's profile, which writes in any order
		{h("topic_poisoned", "ackpolicy_topic", "ackpolicy_rejections"), watermillProfile, []string{"ackpolicy_topic", "ackpolicy_rejections"}},
		{h("ackpolicy_topic", "ackpolicy_reason", "kafka_dlt-original-topic", "kafka_dlt-exception-stacktrace"), springProfile, []string{"ackpolicy_topic", "ackpolicy_reason"}},
	} {
		l := parseLetter(&sarama.ConsumerMessage{Headers: test.headers}, 0)
		var kept []string
		for _, h := range l.headers(headersOrigin) {
			kept = append(kept, string(h.Key))
		}
		if l.profile != test.want || !slices.Equal(kept, test.kept) {
			t.Errorf("%v: kept %v under %+v", test.headers, kept, l.profile)
		}
	}
}

// Whatever the headers hold, a letter can be read, shown and sent.
func FuzzLetter(f *testing.F) {
	for _, key := range slices.Concat(originHeaders, rejectionHeaders, watermillHeaders, []string{
		"kafka_dlt-original-partition", "kafka_dlt-original-offset", "kafka_dlt-original-timestamp", "__dlq.errors.topic", "__dlq.errors.delivery.count", "",
	}) {
		f.Add(key, []byte("9999999999999999999"), key, []byte{0xff, 0, 0x80, 1}, []byte("\x1b[2J"), []byte(nil), int64(1<<62))
		f.Add(key, []byte("-1"), "ackpolicy_topic", []byte("a\nb"), []byte(nil), []byte("\xc3"), int64(-1))
		f.Add("ackpolicy_rejected_at", []byte("9999-12-31T23:59:59-23:59"), key, []byte(nil), []byte{}, []byte{}, int64(0))
	}
	f.Fuzz(func(t *testing.T, k1 string, v1 []byte, k2 string, v2, key, value []byte, millis int64) {
		message := &sarama.ConsumerMessage{
			Key: key, Value: value, Timestamp: time.UnixMilli(millis),
			Headers: []*sarama.RecordHeader{{Key: []byte("own"), Value: v1}, {Key: []byte(k1), Value: v1}, {Key: []byte(k2), Value: v2}},
		}
		l := parseLetter(message, 0)
		for _, keep := range []string{headersOrigin, headersAll, headersNone} {
			if h := l.headers(keep); len(h) == 0 || string(h[0].Key) != "own" {
				t.Fatalf("the record's own header is gone: %q", h)
			}
		}
		d := &destination{topic: "x", partitions: 3, byKey: sarama.NewHashPartitioner("x")}
		if m := d.message(l, headersOrigin, timestampOriginal); m.Partition < 0 || m.Partition > 2 {
			t.Fatalf("partition %d", m.Partition)
		}
		s := newSummary()
		s.add(l)
		s.goes(l, nil, errNoOrigin)
		s.print(io.Discard)
		var out bytes.Buffer
		table := &rows{table: cli.NewTable(&out), all: true, to: true}
		testkit.Check(t, table.add(l, false, "-"))
		testkit.Check(t, table.table.Flush())
		show(&out, l, true)
		for _, r := range out.String() {
			if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r == 0x9b {
				t.Fatalf("a terminal would obey %q", out.String())
			}
		}
		var line bytes.Buffer
		if err := record.PrintJSON(&line, forScripts(l, true, true)); err != nil || !json.Valid(line.Bytes()) {
			t.Fatalf("%s: %v", line.Bytes(), err)
		}
		(&filter{key: new(string), since: time.Now()}).chooses(l)
	})
}
