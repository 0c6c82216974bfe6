// Package letters has the commands that read a dead letter topic, and send letters back
// to the topics that they are from.
package letters

import (
	"errors"
	"math"
	"regexp"
	"slices"
	"time"

	"github.com/IBM/sarama"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
)

// The commands.
const (
	cmdList   = "list"
	cmdShow   = "show"
	cmdSend   = "send"
	cmdSkip   = "skip"
	cmdReopen = "reopen"
)

const long = `Reads a dead letter topic, and sends letters back to the topics that they are from.

Without filters all open letters are chosen, up to the end of the topic at the start;
send then asks first, or wants --yes.
What is done is stored in Kafka, for the consumer group of --group: a command that was
interrupted, or killed, continues where it was.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 done but for letters that cannot be
sent, 130 interrupted.`

// Command returns the commands for dead letters.
func Command(env *cli.Env) *cobra.Command {
	group := cli.Group("letters", "List dead letters, and send them back", long,
		command(env, cmdList, "List the letters that are open", `  ackpolicy letters list --brokers kafka:9092 --topic orders.dlq
  ackpolicy letters list --topic orders.dlq --since 6h --reason timeout
  ackpolicy letters list --topic orders.dlq --json | jq .reason`),
		command(env, cmdShow, "Show letters whole: headers, key and value", `  ackpolicy letters show --topic orders.dlq --at 2:17`),
		command(env, cmdSend, "Send letters back, once each", `  ackpolicy letters send --topic orders.dlq --reason timeout --since 6h --dry-run
  ackpolicy letters send --topic orders.dlq --reason timeout --since 6h --rate 50
  ackpolicy letters send --topic orders.dlq --at 2:17,3:100-250 --to orders.repaired`),
		command(env, cmdSkip, "Mark letters as done without sending them", `  ackpolicy letters skip --topic orders.dlq --handler metrics`),
		command(env, cmdReopen, "Make letters that were sent or skipped open again", `  ackpolicy letters reopen --topic orders.dlq --at 2:17`),
	)
	group.Aliases = []string{"letter"}
	return group
}

// options is the command line.
type options struct {
	command string
	filter
	topic, group string
	limit        int
	all          bool
	json         bool

	dryRun    bool
	to        string
	headers   string
	timestamp string
	rate      float64
	batch     int
	firstRun  bool
	yes       bool
}

// command returns one of the commands. The flags that it has no use for are not defined,
// so that a slip such as "list --to" is an error.
func command(env *cli.Env, name, short, example string) *cobra.Command {
	o := &options{command: name}
	c := &cobra.Command{
		Use: name, Short: short, Example: example, Args: cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return cli.UsageError{Err: err}
			}
			r := &run{options: o, env: env, say: env.Out}
			return r.execute(c.Context())
		},
	}
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&o.topic, "topic", "", "the dead letter `topic`")
	flags.StringVar(&o.group, "group", "", "the consumer `group` whose offsets say what is done (default TOPIC-redrive)")
	env.CompleteTopics(c, "topic")
	env.CompleteGroups(c, "group")
	o.filterFlags(flags, env.Now)
	flags.BoolVar(&o.json, "json", false, "print one JSON object per letter")
	if name == cmdList || name == cmdShow {
		flags.BoolVar(&o.all, "all", false, "also letters that were sent or skipped")
	} else {
		flags.BoolVar(&o.dryRun, "dry-run", false, "list what would be done, and do nothing")
	}
	if name == cmdSend {
		o.sendFlags(flags, &env.Kafka.Compression)
		env.CompleteTopics(c, "to")
		cli.Complete(c, "headers", headersOrigin, headersAll, headersNone)
		cli.Complete(c, "timestamp", timestampNow, timestampOriginal)
		cli.Complete(c, "compression", "none", "gzip", "snappy", "lz4", "zstd")
	}
	return c
}

func (o *options) filterFlags(flags *pflag.FlagSet, now func() time.Time) {
	flags.Func("at", "only at these `places`: PARTITION, PARTITION:OFFSET or PARTITION:FIRST-LAST, comma separated", func(text string) error {
		p, err := parsePlaces(text)
		if o.at == nil {
			o.at = places{}
		}
		for partition, spans := range p {
			o.at[partition] = append(o.at[partition], spans...)
		}
		return err
	})
	flags.StringSliceVar(&o.origin, "origin", nil, "only from these origin `topics`, comma separated")
	flags.StringSliceVar(&o.handler, "handler", nil, "only from these `handlers`, comma separated")
	flags.StringSliceVar(&o.rejectedBy, "rejected-by", nil, "only what these consumer `groups` rejected, comma separated")
	flags.Func("reason", "only for reasons that match this `regexp`", func(text string) (err error) {
		o.reason, err = regexp.Compile(text)
		return err
	})
	flags.Func("key", "only with exactly this `key`", func(text string) error {
		o.key = &text
		return nil
	})
	moment := func(into *time.Time, name, help string) {
		flags.Func(name, help, func(text string) (err error) {
			*into, err = parseMoment(text, now())
			return err
		})
	}
	moment(&o.since, "since", "only if rejected at or after this `time`: 2006-01-02T15:04:05Z, a date, or 90m or 2d for how long ago")
	moment(&o.until, "until", "only if rejected at or before this `time`")
	flags.IntVar(&o.limit, "limit", 0, "at most `n` letters; 0: no limit")
}

func (o *options) sendFlags(flags *pflag.FlagSet, codec *sarama.CompressionCodec) {
	flags.StringVar(&o.to, "to", "", "send to this `topic` instead of the origin")
	flags.StringVar(&o.headers, "headers", headersOrigin,
		"what stays of the letter's `headers`: origin (what keeps its origin and count, should it be rejected again), all or none")
	flags.StringVar(&o.timestamp, "timestamp", timestampNow, "`now`, or original: Kafka deletes by it, so an old one may go unread")
	flags.TextVar(codec, "compression", sarama.CompressionNone, "`codec` of what is sent: none, gzip, snappy, lz4 or zstd")
	flags.Float64Var(&o.rate, "rate", 0, "at most `n` letters per second; 0: no limit")
	flags.IntVar(&o.batch, "batch", 100, "`n` letters in a transaction")
	flags.BoolVar(&o.yes, "yes", false, "send all letters without asking, where no filter chooses some")
	flags.BoolVar(&o.firstRun, "first-run", false, "nothing was ever sent from this topic, although it has letters older than what Kafka remembers")
}

func (o *options) check() error {
	var errs []error
	want := func(ok bool, text string) {
		if !ok {
			errs = append(errs, errors.New(text))
		}
	}
	want(o.topic != "", "no topic: set --topic to the dead letter topic")
	want(o.topic == "" || topicName.MatchString(o.topic), "--topic: not the name of a topic")
	want(o.limit >= 0, "--limit: want 0 or more")
	want(o.since.IsZero() || o.until.IsZero() || !o.until.Before(o.since), "--until is before --since")
	if o.command == cmdSend {
		want(o.to == "" || topicName.MatchString(o.to), "--to: not the name of a topic")
		want(o.to == "" || o.to != o.topic, "--to is the dead letter topic itself")
		want(slices.Contains([]string{headersOrigin, headersAll, headersNone}, o.headers), "--headers: want origin, all or none")
		want(slices.Contains([]string{timestampNow, timestampOriginal}, o.timestamp), "--timestamp: want now or original")
		want(o.rate == 0 || o.rate >= 0.001 && !math.IsInf(o.rate, 0), "--rate: want 0, or 0.001 letters per second and more")
		want(o.batch >= 1 && o.batch <= 10_000, "--batch: want 1 to 10000")
	}
	if o.command == cmdSkip || o.command == cmdReopen {
		want(o.narrow(), o.command+" wants a filter, such as --at 2:17; --reason '' chooses all")
	}
	if o.group == "" {
		o.group = o.topic + "-redrive"
	}
	return errors.Join(errs...)
}
