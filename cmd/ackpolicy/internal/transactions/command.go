// Package transactions shows open Kafka transactions, and ends hanging ones.
package transactions

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/record"
)

const long = `Shows open transactions: those whose ids begin with the group and a dash, or with a
prefix, and those that have written to the given topics.

  STATE       Ongoing: its owner is at work, or gone. If it is gone, the broker aborts
              the transaction after TIMEOUT and up to 10 s more.
              Hanging: no coordinator knows it, and nothing will end it. Readers of the
              partition with read_committed wait for it.
              Unknown: it hangs, or the user may not see its id. The right Describe on
              all transactional ids shows which.
  AGE         since it began; of a hanging one, since its last record
  PARTITIONS  those that it has written to. Offsets of a group are in __consumer_offsets

A hanging transaction is found only in the topics that are looked at: name those that the
group writes to. With --group, its offsets are looked at, too.

--abort ends hanging ones, and no others. It asks, unless --yes is given; without a
terminal it wants --yes.`

const example = `  ackpolicy transactions --group billing --topic invoices
  ackpolicy transactions --topic invoices --topic receipts --abort`

// Command returns the command transactions.
func Command(env *cli.Env) *cobra.Command {
	c := &command{env: env}
	cmd := &cobra.Command{
		Use: "transactions", Short: "Show open transactions, and end hanging ones", Long: long, Example: example, Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.group == "" && c.prefix == "" && len(c.topics) == 0 {
				return cli.UsageError{Err: errors.New("nothing to look at: set --group, --prefix or --topic")}
			}
			return c.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&c.group, "group", "", "the ids that begin with this consumer `group` and a dash, and its offsets")
	flags.StringVar(&c.prefix, "prefix", "", "the ids that begin with this `text`: Transactions.ID")
	flags.StringArrayVar(&c.topics, "topic", nil, "what is open in this `topic`; may be given more than once")
	flags.BoolVar(&c.all, "all", false, "also show ids of the group or prefix whose transactions have ended")
	flags.BoolVar(&c.json, "json", false, "print one JSON object")
	flags.BoolVar(&c.abort, "abort", false, "abort the hanging ones")
	flags.BoolVar(&c.yes, "yes", false, "do it without asking")
	env.CompleteGroups(cmd, "group")
	env.CompleteTopics(cmd, "topic")
	return cmd
}

type command struct {
	env              *cli.Env
	group, prefix    string
	topics           []string
	all, json, abort bool
	yes              bool
}

var errNotAborted = errors.New("nothing was aborted")

func (c *command) run(ctx context.Context) error {
	c.env.Kafka.Admin = true
	client, err := c.env.Client("")
	if err != nil {
		return err
	}
	l, err := newLook(client)
	if err != nil {
		return errors.Join(c.env.Kafka.Explain(err), client.Close())
	}
	defer l.close()
	found, err := l.find(c.prefixes(), c.group, c.topics)
	if err != nil {
		return c.env.Kafka.Explain(err)
	}
	if !c.all {
		found = only(found, Transaction.open)
	}
	if err := c.print(found); err != nil || !c.abort {
		return err
	}
	return c.end(ctx, l, only(found, Transaction.hangs))
}

func (c *command) prefixes() (prefixes []string) {
	if c.group != "" {
		prefixes = append(prefixes, c.group+"-")
	}
	if c.prefix != "" {
		prefixes = append(prefixes, c.prefix)
	}
	return prefixes
}

func (c *command) print(found []Transaction) error {
	if c.json {
		if found == nil {
			found = []Transaction{}
		}
		return record.PrintJSON(c.env.Out, map[string][]Transaction{"transactions": found})
	}
	if len(found) == 0 {
		_, err := fmt.Fprintln(c.env.Out, "No transaction is open.")
		return err
	}
	table := cli.NewTable(c.env.Out)
	err := table.Row("ID", "STATE", "AGE", "TIMEOUT", "PRODUCER", "PARTITIONS")
	for _, t := range found {
		age, timeout := "-", "-"
		if t.Since != nil {
			age = cli.Rough(c.env.Now().Sub(*t.Since))
		}
		if t.TimeoutMS > 0 {
			timeout = cli.Rough(time.Duration(t.TimeoutMS) * time.Millisecond)
		}
		var places []string
		for _, p := range t.Partitions {
			places = append(places, fmt.Sprintf("%s:%d", cli.Clean(p.Topic), p.Partition))
		}
		err = errors.Join(err, table.Row(cli.OrDash(cli.Clean(t.ID)), t.State, age, timeout,
			fmt.Sprintf("%d/%d", t.ProducerID, t.Epoch), cli.OrDash(strings.Join(places, " "))))
	}
	return errors.Join(err, table.Flush())
}

// end aborts what hangs.
func (c *command) end(ctx context.Context, l *look, hanging []Transaction) error {
	if len(hanging) == 0 {
		_, err := fmt.Fprintln(c.env.Err, "No transaction hangs: nothing is to be aborted.")
		return err
	}
	if err := c.consent(ctx, len(hanging)); err != nil {
		return err
	}
	for _, t := range hanging {
		// Whoever was asked took their time: what has ended meanwhile is left alone.
		now, err := l.hanging(t.topics())
		if err != nil {
			return c.env.Kafka.Explain(err)
		}
		for _, p := range t.Partitions {
			if !contains(now, t, p) {
				continue
			}
			if err := c.env.Kafka.AbortTransaction(ctx, kafka.Marker{
				Topic: p.Topic, Partition: p.Partition, ProducerID: t.ProducerID, Epoch: t.Epoch, CoordinatorEpoch: max(0, p.coordinatorEpoch),
			}); err != nil {
				return fmt.Errorf("%s, partition %d: cannot abort the transaction of producer %d: %w", p.Topic, p.Partition, t.ProducerID, err)
			}
		}
		if now, err = l.hanging(t.topics()); err != nil {
			return c.env.Kafka.Explain(err)
		}
		for _, p := range t.Partitions {
			if contains(now, t, p) {
				return fmt.Errorf("%s, partition %d: the transaction of producer %d is open still", p.Topic, p.Partition, t.ProducerID)
			}
		}
	}
	_, err := fmt.Fprintf(c.env.Err, "Aborted: %s.\n", cli.Plural(len(hanging), "transaction", "transactions"))
	return err
}

func (c *command) consent(ctx context.Context, n int) error {
	if c.yes {
		return nil
	}
	if c.env.Ask == nil {
		return fmt.Errorf("there is no terminal to ask at: say --yes: %w", errNotAborted)
	}
	yes, err := c.env.Ask(ctx, fmt.Sprintf("Abort %s? [y/N] ", cli.Plural(n, "hanging transaction", "hanging transactions")))
	if err == nil && !yes {
		err = errNotAborted
	}
	return err
}
