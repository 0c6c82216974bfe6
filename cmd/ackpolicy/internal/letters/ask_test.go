package letters

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
)

// replying runs the command at a terminal where somebody replies.
func (b *bed) replying(reply bool, args ...string) (question string, r result) {
	b.t.Helper()
	var out bytes.Buffer
	env := cli.NewEnv(noEnv, strings.NewReader(""), &out, &out)
	env.Ask = func(_ context.Context, q string) (bool, error) {
		question = q
		return reply, nil
	}
	args = append([]string{"letters"}, append(args, "--brokers", strings.Join(b.broker.Addrs(), ","), "--topic", b.dlq)...)
	return question, result{Args: args, Code: env.Run(b.t.Context(), args, Command), Out: out.String()}
}

// All letters are sent only where that was meant.
func TestSendAsks(t *testing.T) {
	t.Parallel()
	b := newBed(t, 1)
	b.letters(0, 3)
	r := execute(t.Context(), strings.NewReader("y\n"), "letters", "send", "--brokers", strings.Join(b.broker.Addrs(), ","), "--topic", b.dlq)
	if r.Code != exitFailed || !strings.Contains(r.Err, "to send all, 3 letters to "+b.origin+", say --yes: nothing was sent") {
		t.Errorf("without a terminal: %v", r)
	}
	question, r := b.replying(false, "send")
	if want := "Send all 3 letters to " + b.origin + "? [y/N] "; question != want || r.Code != exitFailed || !strings.Contains(r.Out, errNoConsent.Error()) {
		t.Errorf("asked %q and got the reply no: %v", question, r)
	}
	b.wantStored(0, -1)
	if question, r = b.replying(true, "send", "--limit", "1"); question != "" || r.Code != exitDone {
		t.Errorf("with a limit it asks %q, %v", question, r)
	}
	if question, r = b.replying(true, "send", "--at", "0:1"); question != "" || r.Code != exitDone {
		t.Errorf("with a filter it asks %q, %v", question, r)
	}
	if question, r = b.replying(true, "send"); !strings.Contains(question, "Send all 1 letter to ") || r.Code != exitDone {
		t.Errorf("it asks %q, %v", question, r)
	}
	b.wantValues(0, "0", "1", "2")
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
		if _, err := d.of(&letter{}); !errors.Is(err, kafka.ErrNoTopic) {
			t.Fatal(err)
		}
	}
	if client.asked != 1 {
		t.Errorf("asked %d times", client.asked)
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"letters"}, {"letters", "-h"}, {"help", "letters", "send"}, {"letters", "send", "-h"}} {
		r := execute(t.Context(), strings.NewReader(""), args...)
		if r.Code != exitDone || !strings.Contains(r.Out, "Usage:\n  ackpolicy letters") || r.Err != "" {
			t.Errorf("%q: %v", args, r)
		}
		if sends := strings.Contains(r.Out, "--first-run"); sends != strings.Contains(fmt.Sprint(args), "send") {
			t.Errorf("%q shows the flags of another command", args)
		}
	}
	for _, args := range [][]string{{"version"}, {"--version"}} {
		r := execute(t.Context(), strings.NewReader(""), args...)
		if r.Code != exitDone || !strings.HasPrefix(r.Out, "ackpolicy ") {
			t.Errorf("%q: %v", args, r)
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
	const n = 2*cli.AlignedRows + 20
	b.letters(0, n)
	r := b.want(exitDone, nil, "list")
	lines := strings.Split(r.Out, "\n")
	at := strings.Index(lines[0], "REASON")
	for _, line := range lines[1 : n+1] {
		if strings.Index(line, "cannot charge") != at {
			t.Fatalf("the columns moved:\n%s\n%s", lines[0], line)
		}
	}
	b.want(exitDone, nil, "send")
	b.want(exitDone, []string{"No letter in " + b.dlq + " is open: all were sent or skipped, and 'list --all' shows them."}, "list")
	b.want(exitDone, []string{"sent/skipped"}, "list", "--all")
}
