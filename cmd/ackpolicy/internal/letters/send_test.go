package letters

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func (b *bed) wantValues(partition int32, want ...string) {
	b.t.Helper()
	if got := b.values(partition); !slices.Equal(got, want) {
		b.t.Errorf("partition %d of the origin holds %v, want %v", partition, got, want)
	}
}

// Chosen letters go back; those that were not chosen stay open, whatever their place.
func TestSendLeavesWhatIsNotChosen(t *testing.T) {
	t.Parallel()
	b := newBed(t, 2)
	for i, reason := range []string{"timeout", "invalid", "timeout", "invalid", "timeout"} {
		b.letter(1, "k", string(rune('a'+i)), ackpolicy.Letter{Offset: int64(i), Reason: errors.New(reason)})
	}
	b.letter(0, "k", "z", ackpolicy.Letter{})
	b.want(exitDone, []string{"Sent 4 letters."}, "send", "--reason", "^timeout$|charge")
	b.wantValues(1, "a", "c", "e")
	b.wantValues(0, "z")
	b.wantStored(1, 1)
	b.wantStored(0, 1)
	b.want(exitDone, []string{"2 letters,", "1:1 ", "1:3 "}, "list")
	b.want(exitDone, []string{"No letter in " + b.dlq + " that the filters choose is open"}, "send", "--reason", "timeout")
	b.want(exitDone, []string{"Sent 1 letter."}, "send", "--limit", "1")
	b.wantStored(1, 3)
	b.want(exitDone, []string{"Sent 1 letter."}, "send")
	b.wantStored(1, 5)
	b.wantValues(1, "a", "c", "e", "b", "d")
	b.want(exitDone, []string{"No letter in " + b.dlq + " is open: all were sent or skipped"}, "send")
}

// Each filter alone: which of eight letters it chooses.
func TestFilters(t *testing.T) {
	t.Parallel()
	b := newBed(t, 2)
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	for i, l := range []ackpolicy.Letter{
		{Handler: "charge", Group: "billing", Reason: errors.New("order 17: timeout"), RejectedAt: ago(time.Minute)},
		{Handler: "charge", Group: "shipping", Reason: errors.New("no stock"), RejectedAt: ago(3 * time.Hour)},
		{Handler: "refund", Group: "billing", Reason: errors.New("timeout"), RejectedAt: ago(3 * time.Hour)},
		{Handler: "refund", Group: "billing", Topic: "refunds", RejectedAt: ago(26 * time.Hour)},
	} {
		b.letter(0, []string{"a", "", "a", "b"}[i], "", l)
		b.letter(1, "other", "", l)
	}
	nobody := brokertest.Record{Value: []byte("x")} // by nobody, from nowhere, at no time
	b.put(b.dlq, 0, nobody)
	for _, test := range []struct {
		want string
		args []string
	}{
		{"0:0 0:1 0:2 0:3 0:4 1:0 1:1 1:2 1:3", nil},
		{"0:0 0:1 0:2 0:3 0:4", []string{"--at", "0"}},
		{"0:1 0:2 1:3", []string{"--at", "0:1-2,1:3-"}},
		{"0:1 1:3", []string{"--at", "0:1", "--at", "1:3-99"}},
		{"0:3 1:3", []string{"--origin", "refunds"}},
		{"0:0 0:1 0:2 0:3 1:0 1:1 1:2 1:3", []string{"--origin", "refunds," + b.origin}},
		{"0:2 0:3 1:2 1:3", []string{"--handler", "refund"}},
		{"0:1 1:1", []string{"--rejected-by", "shipping"}},
		{"0:0 0:2 1:0 1:2", []string{"--reason", "^(order .*: )?timeout$"}},
		{"0:0 0:2", []string{"--key", "a"}},
		{"0:1", []string{"--key", ""}},
		{"0:0 1:0", []string{"--since", "1h"}},
		{"0:1 0:2 1:1 1:2", []string{"--since", "24h", "--until", "1h"}},
		{"0:3 1:3", []string{"--until", ago(24 * time.Hour).UTC().Format(time.RFC3339)}},
		{"0:0 0:1 0:2", []string{"--limit", "3"}},
		{"0:2", []string{"--limit", "1", "--reason", "timeout", "--handler", "refund"}},
		{"", []string{"--handler", "none"}},
	} {
		r := b.want(exitDone, nil, append([]string{"list"}, test.args...)...)
		var got []string
		for _, line := range strings.Split(r.Out, "\n") {
			if place, _, _ := strings.Cut(line, " "); strings.Contains(place, ":") {
				got = append(got, place)
			}
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%q: got %v, want %s", test.args, got, test.want)
		}
	}
	b.want(exitUsage, []string{"--at: topic " + b.dlq + " has no partition 2, it has 2"}, "list", "--at", "2")
}

// The dry run lists what would be done and where it would go, and changes nothing.
func TestDryRun(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.letters(0, 3)
	for _, args := range [][]string{{"send"}, {"skip", "--at", "0:0"}, {"reopen", "--at", "0:0"}} {
		b.want(exitDone, nil, append(args, "--dry-run")...)
	}
	b.want(exitDone, []string{"0:0 ", "0:2 ", b.origin + " 0", "Dry run: 3 letters would be sent to " + b.origin}, "send", "--dry-run")
	b.want(exitDone, []string{`"to":{"topic":"` + b.origin + `","partition":0}`}, "send", "--dry-run", "--json")
	b.want(exitDone, []string{"Dry run: 1 letter would be skipped"}, "skip", "--at", "0:1", "--dry-run")
	b.wantValues(0)
	b.wantStored(0, -1)
	if _, state, err := brokertest.Members(b.broker.Addrs(), b.group()); err == nil && state != "Dead" {
		t.Errorf("there is a group: %s", state)
	}
	b.want(exitDone, []string{"3 letters,"})
}

func TestSkipAndReopen(t *testing.T) {
	t.Parallel()
	b := newBed(t, 2)
	b.letters(0, 5)
	b.letters(1, 2)
	b.want(exitDone, []string{"3 letters skipped."}, "skip", "--at", "0:0-1,1:1")
	b.wantStored(0, 2)
	b.wantStored(1, 0)
	b.want(exitDone, []string{"0:0 ", " sent/skipped "}, "list", "--all", "--at", "0:0")
	b.want(exitDone, []string{"Sent 4 letters."}, "send")
	b.wantValues(0, "2", "3", "4")
	b.want(exitDone, []string{"2 letters opened again."}, "reopen", "--at", "0:1,0:3")
	b.wantStored(0, 1)
	b.want(exitDone, []string{"Sent 2 letters."}, "send")
	b.wantValues(0, "2", "3", "4", "1", "3")
	b.wantStored(0, 5)
	b.want(exitDone, []string{"that the filters choose was sent or skipped"}, "reopen", "--at", "0:9")
	b.want(exitUsage, []string{"skip wants a filter"}, "skip")
}

// What cannot go anywhere stays, and is named.
func TestUndeliverable(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.letter(0, "k", "sent", ackpolicy.Letter{})
	b.put(b.dlq, 0, brokertest.KeyValue("k", "no origin"))
	b.letter(0, "k", "itself", ackpolicy.Letter{Topic: b.dlq})
	b.want(exitUndelivered, []string{"1 letter cannot be sent, the first is 0:1: the headers name no origin topic. Set a destination with --to.",
		"the first is 0:2: the origin is the dead letter topic itself", "Sent 1 letter."}, "send")
	b.wantValues(0, "sent")
	b.wantStored(0, 1)
	b.want(exitUndelivered, []string{"Dry run: 0 letters would be sent."}, "send", "--dry-run")
	b.want(exitDone, []string{"Sent 2 letters."}, "send", "--to", b.origin)
	b.wantValues(0, "sent", "no origin", "itself")
	b.wantStored(0, 3)
}

// A topic that is not there is neither written to nor made; nothing is sent to others either.
func TestMissingTopic(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	gone := b.origin + "-gone"
	b.letter(0, "k", "fine", ackpolicy.Letter{})
	b.letter(0, "k", "lost", ackpolicy.Letter{Topic: gone})
	b.letter(0, "k", "hostile", ackpolicy.Letter{Topic: "no/topic\x1b[2J"})
	for _, args := range [][]string{{"send"}, {"send", "--dry-run"}} {
		r := b.want(exitFailed, []string{"topic " + gone + ": the topic does not exist (1 letter, the first is 0:1)", `no/topic\x1b[2J`}, args...)
		if strings.Contains(r.Err, "\x1b") {
			t.Errorf("a terminal would obey %q", r.Err)
		}
	}
	b.want(exitFailed, []string{"topic " + gone + ": the topic does not exist"}, "send", "--to", gone)
	b.want(exitFailed, []string{"dead letter topic " + gone + ": the topic does not exist"}, "list", "--topic", gone)
	b.wantValues(0)
	b.wantStored(0, -1)
	client, err := sarama.NewClient(b.broker.Addrs(), nil)
	testkit.Check(t, err)
	defer client.Close()
	topics, err := client.Topics()
	testkit.Check(t, err)
	if slices.Contains(topics, gone) {
		t.Error("the topic was made")
	}
	b.want(exitDone, []string{"Sent 1 letter."}, "send", "--origin", b.origin)
}

// Without a partition to go back to, the key decides, as it does for Watermill's publisher.
func TestPartitionByKey(t *testing.T) {
	t.Parallel()
	b := newBed(t, 5)
	to := b.origin + ".two"
	testkit.Check(t, brokertest.CreateTopic(b.broker.Addrs(), to, 2))
	for i := range 20 {
		b.letter(4, fmt.Sprint(i%4), fmt.Sprint(i), ackpolicy.Letter{})
	}
	b.want(exitDone, []string{"Sent 20 letters."}, "send", "--to", to)
	n := 0
	for p := range int32(2) {
		for _, m := range b.read(to, p, sarama.ReadCommitted) {
			want, err := sarama.NewHashPartitioner(to).Partition(&sarama.ProducerMessage{Key: sarama.ByteEncoder(m.Key)}, 2)
			testkit.Check(t, err)
			if want != p {
				t.Errorf("key %s is in partition %d, not %d", m.Key, p, want)
			}
			n++
		}
	}
	if n != 20 {
		t.Errorf("%d records", n)
	}
}

// Kafka forgets the offsets of a group that is not used for a week: older letters may
// have been sent.
func TestOlderThanKafkaRemembers(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.letter(0, "k", "old", ackpolicy.Letter{RejectedAt: time.Now().Add(-8 * 24 * time.Hour)})
	b.letter(0, "k", "young", ackpolicy.Letter{})
	b.want(exitFailed, []string{"has no progress stored, and 1 letter is older", "--first-run", "--since"}, "send")
	b.wantValues(0)
	b.want(exitDone, []string{"Sent 1 letter."}, "send", "--since", "48h")
	b.want(exitDone, []string{"Sent 1 letter."}, "send") // progress is stored now
	b.wantValues(0, "young", "old")
	b.want(exitDone, []string{"Sent 2 letters."}, "send", "--first-run", "--group", b.group()+"2")
}

// An offset of another kind of group is not taken for ours, nor one of an older topic.
func TestForeignProgress(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.letters(0, 3)
	testkit.Check(t, brokertest.ResetOffset(b.broker.Addrs(), b.group(), b.dlq, 0, 2)) // as kafka-consumer-groups.sh does
	b.want(exitDone, []string{"Sent 1 letter."}, "send")
	b.wantValues(0, "2")
	testkit.Check(t, brokertest.ResetOffset(b.broker.Addrs(), b.group(), b.dlq, 0, 9))
	for _, command := range []string{"send", "list"} {
		b.want(exitFailed, []string{"marked as done, but the topic ends at 3", "--reset-offsets"}, command)
	}
	b.wantValues(0, "2")
}

// Letters that retention took are passed by.
func TestRetention(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.letters(0, 5)
	b.want(exitDone, nil, "send", "--at", "0:3")
	testkit.Check(t, brokertest.DeleteRecords(b.broker.Addrs(), b.dlq, 0, 2))
	b.want(exitDone, []string{"2 letters,", "0:2 ", "0:4 "})
	b.want(exitDone, []string{"Sent 2 letters."}, "send")
	b.wantValues(0, "3", "2", "4")
	b.wantStored(0, 5)
}

// Too many that were left out between those that were sent: it stops before Kafka would
// have to forget one.
func TestMarksFull(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	const n = 26_000
	records := make([]brokertest.Record, n)
	rng := rand.New(rand.NewPCG(1, 1))
	for i, place := range rng.Perm(n) {
		handler := []string{"even", "odd"}[place%2]
		records[i] = brokertest.Record{Value: []byte("x"), Headers: []sarama.RecordHeader{
			header("topic_poisoned", b.origin), header("handler_poisoned", handler),
		}}
	}
	b.put(b.dlq, 0, records...)
	r := b.want(exitFailed, []string{"Kafka stores no more marks", "The same command continues from there"}, "send", "--handler", "odd", "--batch", "1000")
	sent := len(b.values(0))
	if sent != 12_000 || !strings.Contains(r.Out, "Stopped: 12000 of 13000 letters sent") {
		t.Errorf("%d were sent: %v", sent, r)
	}
	b.want(exitDone, []string{"letters skipped."}, "skip", "--handler", "even", "--at", "0:0-9999")
	b.want(exitDone, []string{"Sent 1000 letters."}, "send", "--handler", "odd")
}

func TestCopies(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.letters(0, 3)
	b.letters(0, 1)
	b.letter(0, "k", "other group", ackpolicy.Letter{Group: "shipping"})
	b.want(exitDone, []string{"1 is a copy of another one", "skip --at 0:3"})
}

func TestShow(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.letter(0, "k\x1b", "{\n\t\"a\": \"\x07\"\n}", ackpolicy.Letter{})
	b.want(exitDone, []string{"letter     0:0, open", `key        k\x1b`, "{\n\t\"a\": \"\\a\"\n}", "header     ackpolicy_reason: cannot charge: timeout"}, "show", "--at", "0:0")
	b.want(exitDone, []string{`"value":"{\n\t\"a\": \"\u0007\"\n}"`, `{"key":"ackpolicy_attempts","value":"1"}`}, "show", "--json")
}

func TestUsage(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	missing := t.TempDir() + "/missing"
	for _, test := range []struct {
		want string
		args []string
	}{
		{"want a command before the flags, one of list, reopen, send, show, skip", []string{"resend"}},
		{"unknown flag: --to", []string{"list", "--to", "x"}},
		{"unknown flag: --dry-run", []string{"--dry-run"}},
		{"in -limit: long flags have two dashes, --limit", []string{"-limit", "1"}},
		{`unexpected argument "orders.dlq"`, []string{"list", "orders.dlq"}},
		{"--to is the dead letter topic itself", []string{"send", "--to", b.dlq}},
		{"--to: not the name of a topic", []string{"send", "--to", "a b"}},
		{"--headers: want origin, all or none", []string{"send", "--headers", "x"}},
		{"--timestamp: want now or original", []string{"send", "--timestamp", "x"}},
		{"--rate: want 0, or 0.001", []string{"send", "--rate", "1e-9"}},
		{"--rate: want 0, or 0.001", []string{"send", "--rate", "NaN"}},
		{"--batch: want 1 to 10000", []string{"send", "--batch", "0"}},
		{"--limit: want 0 or more", []string{"--limit", "-1"}},
		{`"x" is not a place`, []string{"--at", "x"}},
		{`"1:5-2" is not a place`, []string{"--at", "1:5-2"}},
		{`"" is not a place`, []string{"--at", ""}},
		{"is no time", []string{"--since", "yesterday"}},
		{"--until is before --since", []string{"--since", "1h", "--until", "2h"}},
		{"error parsing regexp", []string{"--reason", "("}},
		{`cannot parse "x" as a compression codec`, []string{"send", "--compression", "x"}},
		{"no topic: set --topic", []string{"--topic", ""}},
		{"no brokers: set --brokers or KAFKA_BROKERS", []string{"--brokers", ""}},
		{"--sasl x: want plain", []string{"--sasl", "x"}},
		{"--sasl needs --user and --password-file", []string{"--sasl", "plain", "--user", "u"}},
		{"--user and --password-file are for --sasl", []string{"--user", "u"}},
		{"--password-file: open", []string{"--sasl", "plain", "--user", "u", "--password-file", missing}},
		{"--tls-ca: open", []string{"--tls-ca", missing}},
		{"--tls-ca: " + os.DevNull + " holds no certificate", []string{"--tls-ca", os.DevNull}},
		{"--tls-cert, --tls-key: open", []string{"--tls-cert", missing}},
	} {
		b.want(exitUsage, []string{test.want, "See 'ackpolicy letters"}, test.args...)
	}
	b.want(exitDone, []string{"ackpolicy letters list [flags]", "--password-file"}, "-h")
	b.want(exitDone, []string{"--first-run"}, "send", "-h")
	b.want(exitFailed, []string{"cannot connect to 127.0.0.1:1"}, "--brokers", "127.0.0.1:1")
	r := b.run("--brokers", "")
	if strings.Count(r.Err, "\n") != 2 {
		t.Errorf("more than said: %v", r)
	}
}
