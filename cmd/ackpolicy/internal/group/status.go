package group

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/IBM/sarama"
	"github.com/spf13/cobra"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/record"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

const statusLong = `Shows how far a consumer group has come, per partition, from what it stored in Kafka.

  COMMITTED, END  the committed offset, and that of the next record of the partition
  LAG             the distance between the two
  WORK            what of it is not settled: records behind the committed offset may be,
                  and the commit says which
  HOLDS           the record that holds the committed offset
  ATTEMPTS, AGE   its deliveries so far, and how long ago the first one began, which
                  members store if they have a MaxAge, or if it takes longer than
                  HandlerSlow
  DUE             when it is delivered next, if it waits after a nack; "in flight" while
                  a handler has it
  OPEN            records that were delivered and are not settled
  LEFT            "cleanly" if the last owner had ended its work, or how many owners died
  MEMBER          the owner: its instance or client id, and its host

What a commit says is as old as the commit. It changes nothing, and joins no group.`

const statusExample = `  ackpolicy status --group billing
  ackpolicy status --group billing --topic orders --watch
  ackpolicy status --group billing --json | jq '.partitions[] | select(.work_lag > 0)'`

// Status returns the command status.
func Status(env *cli.Env) *cobra.Command {
	s := &status{env: env}
	c := &cobra.Command{
		Use: "status", Short: "Show how far a consumer group has come, and what holds it", Long: statusLong, Example: statusExample,
		Args: cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case s.group == "":
				return cli.UsageError{Err: errors.New("no group: set --group")}
			case s.interval <= 0:
				return cli.UsageError{Err: errors.New("--interval: want more than 0")}
			}
			return s.run(c.Context())
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&s.group, "group", "", "the consumer `group`")
	flags.StringVar(&s.topic, "topic", "", "only this `topic`, with all of its partitions")
	flags.BoolVar(&s.json, "json", false, "print one JSON object")
	flags.BoolVarP(&s.watch, "watch", "w", false, "print it again and again, until interrupted")
	flags.DurationVar(&s.interval, "interval", 2*time.Second, "the pause of --watch")
	env.CompleteGroups(c, "group")
	env.CompleteTopics(c, "topic")
	return c
}

type status struct {
	env          *cli.Env
	group, topic string
	json, watch  bool
	interval     time.Duration
}

func (s *status) run(ctx context.Context) error {
	client, err := s.env.Client("")
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	if err := s.once(ctx, client, false); err != nil || !s.watch {
		return err
	}
	for wait.For(s.interval, ctx.Done()) {
		if err := s.once(ctx, client, true); err != nil && ctx.Err() == nil {
			fmt.Fprintf(s.env.Err, "ackpolicy: %v\n", err) // a broker that is restarted, perhaps: it continues
		}
	}
	return context.Cause(ctx)
}

func (s *status) once(ctx context.Context, client sarama.Client, again bool) error {
	state, err := Look(ctx, client, s.group, s.topic, s.env.Now())
	switch {
	case err != nil:
		return s.env.Kafka.Explain(err)
	case s.json:
		return record.PrintJSON(s.env.Out, state)
	case s.watch && s.env.Screen:
		fmt.Fprint(s.env.Out, "\x1b[H\x1b[2J") // to the top of an empty screen
	case again:
		fmt.Fprintln(s.env.Out)
	}
	if s.watch {
		fmt.Fprintf(s.env.Out, "%s\n", cli.Stamp(state.At))
	}
	return state.print(s.env.Out)
}

func (s *State) print(w io.Writer) error {
	fmt.Fprintf(w, "Group %s: %s, %s. Lag %d, work %d.\n\n", cli.Clean(s.Group), s.State,
		cli.Plural(len(s.Members), "member", "members"), s.CommittedLag, s.WorkLag)
	names := map[string]string{}
	for _, m := range s.Members {
		name := m.Instance
		if name == "" {
			name = m.Client
		}
		names[m.ID] = cli.Clean(name + " " + m.Host)
	}
	table := cli.NewTable(w)
	err := table.Row("TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "WORK", "HOLDS", "ATTEMPTS", "AGE", "DUE", "OPEN", "LEFT", "MEMBER")
	for i := range s.Partitions {
		err = errors.Join(err, table.Row(s.Partitions[i].row(s.At, names)...))
	}
	err = errors.Join(err, table.Flush())
	var notes []string
	for _, p := range s.Partitions {
		if p.Holds != nil && p.Holds.Err != "" {
			notes = append(notes, fmt.Sprintf("%s %d: the last error of record %d: %s", p.Topic, p.Partition, p.Holds.Offset, cli.Clean(p.Holds.Err)))
		}
		if p.Ledger != "" {
			notes = append(notes, fmt.Sprintf("%s %d: what is stored with the committed offset is not used: %s", p.Topic, p.Partition, p.Ledger))
		}
	}
	if len(notes) > 0 {
		fmt.Fprintf(w, "\n%s\n", strings.Join(notes, "\n"))
	}
	return err
}

func (p *Partition) row(now time.Time, names map[string]string) []string {
	committed, holds, attempts, age, due := "-", "-", "-", "-", "-"
	if p.Committed != nil {
		committed = strconv.FormatInt(*p.Committed, 10)
	}
	if h := p.Holds; h != nil {
		holds = strconv.FormatInt(h.Offset, 10)
		attempts = cli.Positive(h.Attempts)
		if h.First != nil {
			age = cli.Rough(now.Sub(*h.First))
		}
		switch {
		case h.InFlight:
			due = "in flight"
		case h.Due != nil && h.Due.After(now):
			due = "in " + cli.Rough(h.Due.Sub(now))
		case h.Attempts > 0:
			due = "now"
		}
	}
	left := "-"
	switch {
	case p.Deaths > 0:
		left = cli.Plural(p.Deaths, "death", "deaths")
	case p.LeftCleanly:
		left = "cleanly"
	}
	n := func(n int64) string { return strconv.FormatInt(n, 10) }
	return []string{
		p.Topic, n(int64(p.Partition)), committed, n(p.End), n(p.CommittedLag), n(p.WorkLag),
		holds, attempts, age, due, strconv.Itoa(p.Open), left, cli.OrDash(names[p.Member]),
	}
}
