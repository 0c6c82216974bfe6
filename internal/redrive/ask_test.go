package redrive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
)

// answering runs the command at a terminal where somebody answers.
func (b *bed) answering(answer bool, args ...string) (question string, err error) {
	b.t.Helper()
	o, err := parseOptions(append(append(args[:1:1], "-brokers", strings.Join(b.broker.Addrs(), ","), "-topic", b.dlq), args[1:]...),
		func(string) string { return "" }, time.Now(), io.Discard)
	check(b.t, err)
	var out bytes.Buffer
	r := &run{options: o, stdout: &out, stderr: &out, say: &out}
	r.ask = func(q string) (bool, error) {
		question = q
		return answer, nil
	}
	return question, r.execute(b.t.Context())
}

// All letters are sent only where that was meant.
func TestSendAsks(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.letters(0, 3)
	main := func(args ...string) result {
		var out, errs bytes.Buffer
		args = append(args, "-brokers", strings.Join(b.broker.Addrs(), ","), "-topic", b.dlq)
		code := Main(t.Context(), args, func(string) string { return "" }, strings.NewReader("y\n"), &out, &errs)
		return result{code, out.String(), errs.String()}
	}
	if r := main("send"); r.code != exitFailed || !strings.Contains(r.err, "to send all, 3 letters to "+b.origin+", say -yes: nothing was sent") {
		t.Errorf("without a terminal: %v", r)
	}
	question, err := b.answering(false, "send")
	if want := "Send all 3 letters to " + b.origin + "? [y/N] "; question != want || !errors.Is(err, errNoConsent) {
		t.Errorf("asked %q and was answered no: %v", question, err)
	}
	b.wantStored(0, -1)
	if question, err = b.answering(true, "send", "-limit", "1"); question != "" || err != nil {
		t.Errorf("with a limit it asks %q, %v", question, err)
	}
	if question, err = b.answering(true, "send", "-at", "0:1"); question != "" || err != nil {
		t.Errorf("with a filter it asks %q, %v", question, err)
	}
	if question, err = b.answering(true, "send"); !strings.Contains(question, "Send all 1 letter to ") || err != nil {
		t.Errorf("it asks %q, %v", question, err)
	}
	b.wantValues(0, "0", "1", "2")
}

func TestAsk(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]bool{"y\n": true, " Yes \n": true, "n\n": false, "\n": false, "": false, "yellow\n": false} {
		if yes, err := ask(t.Context(), strings.NewReader(answer), io.Discard, "?"); yes != want || err != nil {
			t.Errorf("%q: %v, %v", answer, yes, err)
		}
	}
	in, typing := io.Pipe()
	defer typing.Close() // ends the reader that nobody waits for
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if yes, err := ask(ctx, in, io.Discard, "?"); yes || !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, %v", yes, err)
	}
}

// counting is a client that counts how often it is asked for a topic's partitions.
type counting struct {
	sarama.Client
	asked int
}

func (c *counting) Partitions(string) ([]int32, error) {
	c.asked++
	return nil, sarama.ErrUnknownTopicOrPartition
}

// A destination that is missing is asked for once, not per letter.
func TestMissingDestinationIsAskedForOnce(t *testing.T) {
	t.Parallel()
	client := &counting{}
	d := &destinations{client: client, from: "dlq", to: "gone"}
	for range 1000 {
		if _, err := d.of(&letter{}); !errors.Is(err, errNoTopic) {
			t.Fatal(err)
		}
	}
	if client.asked != 1 {
		t.Errorf("asked %d times", client.asked)
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"help"}, {"-h"}, {"help", "send"}, {"send", "-h"}} {
		var out, errs bytes.Buffer
		code := Main(t.Context(), args, func(string) string { return "" }, strings.NewReader(""), &out, &errs)
		if code != exitDone || !strings.Contains(out.String(), "usage: ackpolicy-redrive") || errs.Len() > 0 {
			t.Errorf("%q: %v", args, result{code, out.String(), errs.String()})
		}
		if sends := strings.Contains(out.String(), "-first-run"); sends != strings.Contains(fmt.Sprint(args), "send") {
			t.Errorf("%q shows the flags of another command", args)
		}
	}
	for _, args := range [][]string{{"version"}, {"-version"}, {"--version"}} {
		var out, errs bytes.Buffer
		code := Main(t.Context(), args, func(string) string { return "" }, strings.NewReader(""), &out, &errs)
		if code != exitDone || !strings.HasPrefix(out.String(), "ackpolicy-redrive ") {
			t.Errorf("%q: %v", args, result{code, out.String(), errs.String()})
		}
	}
}

func TestParseMoment(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 5, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"2d":         now.AddDate(0, 0, -2),
		"90m":        now.Add(-90 * time.Minute),
		"2026-03-01": time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := parseMoment(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "-2d", "2x", "1.5d", "-1h"} {
		if got, err := parseMoment(text, now); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// Columns stay where they are, however many rows there are, and an empty topic is not
// taken for one whose letters are all done.
func TestListReadsWell(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.want(exitDone, []string{"There are no letters in " + b.dlq + ": it is empty."}, "list")
	const n = 2*alignedRows + 20
	b.letters(0, n)
	r := b.want(exitDone, nil, "list")
	lines := strings.Split(r.out, "\n")
	at := strings.Index(lines[0], "REASON")
	for _, line := range lines[1 : n+1] {
		if strings.Index(line, "cannot charge") != at {
			t.Fatalf("the columns moved:\n%s\n%s", lines[0], line)
		}
	}
	b.want(exitDone, nil, "send")
	b.want(exitDone, []string{"No letter in " + b.dlq + " is open: all were sent or skipped, and 'list -all' shows them."}, "list")
	b.want(exitDone, []string{"sent/skipped"}, "list", "-all")
}
