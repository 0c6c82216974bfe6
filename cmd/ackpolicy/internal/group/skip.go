package group

import (
	"context"
	"errors"
	"fmt"

	"github.com/IBM/sarama"
	"github.com/spf13/cobra"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/record"
)

const skipLong = `Settles one record for a consumer group that has no members, so that it is not delivered
again, and nothing else is skipped. The committed offset moves past it if it is the oldest
that is not settled; else it gets a mark in what the commit stores.

It shows the record and what it will do, and asks, unless --yes is given. Without a
terminal it wants --yes. No dead letter is written: keep the record first, with

  ackpolicy show --topic TOPIC --partition N --offset N --json

A group with members is refused, by Kafka, too: stop them, or reject the record from
within the application.`

const skipExample = `  ackpolicy status --group billing --topic orders
  ackpolicy skip --group billing --topic orders --partition 3 --offset 1000`

// Skip returns the command skip.
func Skip(env *cli.Env) *cobra.Command {
	s := &skip{env: env}
	c := &cobra.Command{
		Use: "skip", Short: "Settle a record for a consumer group that is down", Long: skipLong, Example: skipExample, Args: cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			err := s.place.Check(c)
			if err == nil && s.group == "" {
				err = errors.New("no group: set --group")
			}
			if err != nil {
				return cli.UsageError{Err: err}
			}
			return s.run(c.Context())
		},
	}
	c.Flags().SortFlags = false
	c.Flags().StringVar(&s.group, "group", "", "the consumer `group`")
	env.CompleteGroups(c, "group")
	s.place.Flags(env, c)
	c.Flags().BoolVar(&s.yes, "yes", false, "do it without asking")
	c.Flags().BoolVar(&s.dryRun, "dry-run", false, "show what would be done, and do nothing")
	return c
}

type skip struct {
	env         *cli.Env
	group       string
	place       record.Place
	yes, dryRun bool
	client      sarama.Client
}

var errNotSkipped = errors.New("nothing was skipped")

func (s *skip) run(ctx context.Context) (err error) {
	if s.client, err = s.env.Client(""); err != nil {
		return err
	}
	defer func() { _ = s.client.Close() }()
	m, err := s.place.Find(ctx, s.client)
	if err != nil {
		return s.env.Kafka.Explain(err)
	}
	topics, err := kafka.Topics(s.client, []string{m.Topic})
	if err != nil {
		return err
	}
	now, err := s.stored(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.env.Out, "record     %s\n", s.place)
	record.Print(s.env.Out, m, record.None)
	c, err := settle(m, now, topics[m.Topic])
	if errors.Is(err, errSettled) {
		fmt.Fprintf(s.env.Out, "\nFor group %s %v.\n", s.group, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("group %s, %s: %w", s.group, s.place, err)
	}
	fmt.Fprintf(s.env.Out, "\nFor group %s %s. No other record is skipped.\n", s.group, c.how)
	for _, note := range c.notes {
		fmt.Fprintln(s.env.Out, note)
	}
	if s.dryRun {
		fmt.Fprintln(s.env.Out, "Dry run: nothing was done.")
		return nil
	}
	if err := s.consent(ctx); err != nil {
		return err
	}
	// Whoever was asked took their time.
	if again, err := s.stored(ctx); err != nil {
		return err
	} else if again != now {
		return fmt.Errorf("the group has stored something else meanwhile, try again: %w", errNotSkipped)
	}
	if err := kafka.Store(ctx, s.client, s.group, s.place.Topic, s.place.Partition, c.to); err != nil {
		return s.refused(err)
	}
	_, err = fmt.Fprintln(s.env.Out, "Skipped.")
	return err
}

// stored returns what a group without members has stored.
func (s *skip) stored(ctx context.Context) (kafka.Stored, error) {
	described, err := kafka.Describe(ctx, s.client, s.group)
	if err != nil {
		return kafka.Stored{}, err
	}
	if n := len(described.Members); n > 0 {
		return kafka.Stored{}, s.live(cli.Plural(n, "member", "members"))
	}
	all, err := kafka.Offsets(ctx, s.client, s.group, map[string][]int32{s.place.Topic: {s.place.Partition}}, true)
	if err != nil {
		return kafka.Stored{}, err
	}
	now, ok := all[s.place.Topic][s.place.Partition]
	if !ok {
		return kafka.Stored{}, fmt.Errorf("group %s has no offset stored for %s, partition %d: there is nothing to count from", s.group, s.place.Topic, s.place.Partition)
	}
	return now, nil
}

func (s *skip) live(who string) error {
	return fmt.Errorf("group %s has %s: stop them, or reject the record from within the application: %w", s.group, who, errNotSkipped)
}

func (s *skip) consent(ctx context.Context) error {
	if s.yes {
		return nil
	}
	if s.env.Ask == nil {
		return fmt.Errorf("there is no terminal to ask at: say --yes: %w", errNotSkipped)
	}
	yes, err := s.env.Ask(ctx, "Skip it? [y/N] ")
	if err == nil && !yes {
		err = errNotSkipped
	}
	return err
}

// refused explains why Kafka took no commit.
func (s *skip) refused(err error) error {
	switch {
	case errors.Is(err, sarama.ErrUnknownMemberId), errors.Is(err, sarama.ErrIllegalGeneration), errors.Is(err, sarama.ErrRebalanceInProgress):
		return s.live("members by now")
	case errors.Is(err, sarama.ErrOffsetMetadataTooLarge):
		return errNoRoom
	}
	return fmt.Errorf("group %s: %w", s.group, err)
}
