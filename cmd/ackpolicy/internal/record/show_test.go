package record

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// Each record is printed so that it can be read, and so that no terminal obeys it.
func TestShow(t *testing.T) {
	t.Parallel()
	topic := brokertest.Topic(t)
	testkit.Check(t, brokertest.CreateTopic(testkit.Shared.Addrs(), topic, 2))
	at := time.Date(2026, 3, 4, 5, 6, 7, 8e6, time.UTC)
	_, err := brokertest.Produce(testkit.Shared.Addrs(), topic, 1,
		brokertest.Record{Key: []byte("k\x1b"), Value: []byte(`{"total":1.50,"name":"a\u001bb"}`), Timestamp: at,
			Headers: []sarama.RecordHeader{{Key: []byte("token"), Value: []byte("s\x07")}, {Key: []byte("none")}}},
		brokertest.Record{Value: []byte("two\nlines \x1b[2J"), Timestamp: at},
		brokertest.Record{Value: []byte("\xff\x00bytes"), Timestamp: at},
		brokertest.Record{Key: []byte("tombstone"), Timestamp: at},
	)
	testkit.Check(t, err)
	show := func(code int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		env := cli.NewEnv(func(string) string { return strings.Join(testkit.Shared.Addrs(), ",") }, strings.NewReader(""), &out, &errs)
		if c := env.Run(t.Context(), append([]string{"show"}, args...), Command); c != code {
			t.Fatalf("%q: exit status %d: %s%s", args, c, out.String(), errs.String())
		}
		return out.String() + errs.String()
	}
	place := func(offset string) []string {
		return []string{"--topic", topic, "--partition", "1", "--offset", offset}
	}
	head := func(offset string) string {
		return "record     " + topic + " 1:" + offset + "\ntimestamp  2026-03-04T05:06:07.008Z\n"
	}
	for _, test := range []struct {
		offset, value, want string
	}{
		{"0", Auto, head("0") + "header     token: s\\a\nheader     none: null\nkey        k\\x1b\n" +
			"value      32 bytes, JSON\n{\n  \"total\": 1.50,\n  \"name\": \"a\\u001bb\"\n}\n"},
		{"0", None, head("0") + "header     token: s\\a\nheader     none: null\nkey        k\\x1b\nvalue      32 bytes, not shown\n"},
		{"0", Raw, `{"total":1.50,"name":"a\u001bb"}`},
		{"1", Auto, head("1") + "key        -\nvalue      14 bytes\ntwo\nlines \\x1b[2J\n"},
		{"1", JSON, head("1") + "key        -\nvalue      14 bytes, not JSON\ntwo\nlines \\x1b[2J\n"},
		{"2", Auto, head("2") + "key        -\nvalue      7 bytes\n00000000  ff 00 62 79 74 65 73                              |..bytes|\n"},
		{"2", Text, head("2") + "key        -\nvalue      7 bytes\n\\xff\\x00bytes\n"},
		{"3", Auto, head("3") + "key        tombstone\nvalue      null\n"},
	} {
		if got := show(cli.Done, append(place(test.offset), "--value", test.value)...); got != test.want {
			t.Errorf("%s as %s: got\n%s\nwant\n%s", test.offset, test.value, got, test.want)
		}
	}
	for _, value := range []string{Auto, None} {
		var got struct {
			Topic     string
			Partition int32
			Offset    int64
			Value     *string
			Headers   []Header
		}
		testkit.Check(t, json.Unmarshal([]byte(show(cli.Done, append(place("0"), "--json", "--value", value)...)), &got))
		if got.Topic != topic || got.Partition != 1 || got.Offset != 0 || (got.Value == nil) != (value == None) || len(got.Headers) != 2 {
			t.Errorf("as JSON, --value %s: %+v", value, got)
		}
	}
	for args, want := range map[string]string{
		"--topic " + topic + " --partition 1 --offset 4":      "there is no record " + topic + " 1:4: the partition has the offsets from 0 to 4",
		"--topic " + topic + " --partition 2 --offset 0":      "has no partition 2, it has 2",
		"--topic " + topic + "-gone --partition 0 --offset 0": "the topic does not exist",
	} {
		if got := show(cli.Failed, strings.Fields(args)...); !strings.Contains(got, want) {
			t.Errorf("%q: %s", args, got)
		}
	}
	show(cli.Usage, "--topic", topic)
	show(cli.Usage, append(place("0"), "--value", "xml")...)
}
