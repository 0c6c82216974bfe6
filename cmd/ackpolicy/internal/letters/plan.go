package letters

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
)

// plan looks at what is to be sent before anything is.
func (r *run) plan(ctx context.Context) (*summary, error) {
	found := newSummary()
	var horizon time.Time // what is older may have been sent and forgotten
	if !r.firstRun && !r.used {
		horizon = time.Now().Add(-offsetsRetention(r.client))
	}
	stale := 0
	meter := cli.NewMeter(r.env.Err, "reading", 0)
	defer meter.Clear()
	err := r.walk(ctx, func(_ *part, l *letter) error {
		found.add(l)
		d, err := r.goals.of(l)
		found.goes(l, d, err)
		if when := l.RejectedAt; !when.IsZero() && when.Before(horizon) || when.IsZero() && l.record.Timestamp.Before(horizon) {
			stale++
		}
		meter.Update(found.total)
		return nil
	}, nil)
	if err != nil {
		return nil, err
	}
	if err := found.missing(); err != nil {
		return nil, fmt.Errorf("%w. Create the topic, leave its letters out with --origin, or set another one with --to. Nothing was sent", err)
	}
	if stale > 0 {
		return nil, fmt.Errorf("group %s has no progress stored, and %s older than what Kafka remembers of a group that is not used "+
			"(offsets.retention.minutes): they may have been sent before. If nothing was ever sent from %s, say --first-run; "+
			"else choose younger letters with --since. Nothing was sent", r.group, cli.Plural(stale, "letter is", "letters are"), r.topic)
	}
	return found, nil
}

// offsetsRetention is how long Kafka keeps the offsets of a group without members.
func offsetsRetention(client sarama.Client) time.Duration {
	const usual = 7 * 24 * time.Hour
	const name = "offsets.retention.minutes"
	admin, err := sarama.NewClusterAdminFromClient(client)
	if err != nil {
		return usual
	}
	// The admin is not closed: that would close the client, which is not its own.
	broker, err := client.Controller()
	if err != nil {
		return usual
	}
	results, err := admin.DescribeConfigs([]*sarama.ConfigResource{
		{Type: sarama.BrokerResource, Name: strconv.Itoa(int(broker.ID())), ConfigNames: []string{name}},
	}, sarama.DescribeConfigsOptions{})
	if err != nil {
		return usual // it may be forbidden
	}
	for _, r := range results {
		for _, entry := range r.Configs {
			if minutes, err := strconv.Atoi(entry.Value); err == nil && entry.Name == name && minutes > 0 {
				return time.Duration(minutes) * time.Minute
			}
		}
	}
	return usual
}

// troubles names the letters that cannot be sent.
func (r *run) troubles(found *summary) {
	for _, t := range found.undeliverable {
		hint := ""
		if errors.Is(t.err, errNoOrigin) {
			hint = " Set a destination with --to."
		}
		fmt.Fprintf(r.say, "%s cannot be sent, the first is %s: %v.%s\n", letters(t.n), t.first, t.err, hint)
	}
}

func targets(found *summary) string {
	names := slices.Sorted(maps.Keys(found.destinations))
	if len(names) == 0 {
		return ""
	}
	if len(names) > maxShown {
		names = append(names[:maxShown], "…")
	}
	return " to " + strings.Join(names, ", ")
}
