package record

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/IBM/sarama"
	"github.com/spf13/cobra"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
)

// Place is where a record is, as flags say it.
type Place struct {
	Topic     string
	Partition int32
	Offset    int64
}

func (p Place) String() string { return fmt.Sprintf("%s %d:%d", p.Topic, p.Partition, p.Offset) }

// Flags defines the flags.
func (p *Place) Flags(env *cli.Env, c *cobra.Command) {
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringVar(&p.Topic, "topic", "", "the record's `topic`")
	env.CompleteTopics(c, "topic")
	flags.Int32Var(&p.Partition, "partition", 0, "its `partition`")
	flags.Int64Var(&p.Offset, "offset", 0, "its `offset`")
}

// Check returns what is wrong with the flags.
func (p *Place) Check(c *cobra.Command) error {
	set := c.Flags().Changed
	if !set("topic") || !set("partition") || !set("offset") || p.Topic == "" || p.Partition < 0 || p.Offset < 0 {
		return errors.New("want --topic, --partition and --offset")
	}
	return nil
}

// Find reads the record.
func (p *Place) Find(ctx context.Context, client sarama.Client) (*sarama.ConsumerMessage, error) {
	partitions, err := client.Partitions(p.Topic)
	switch {
	case errors.Is(err, sarama.ErrUnknownTopicOrPartition):
		return nil, fmt.Errorf("topic %s: %w", p.Topic, kafka.ErrNoTopic)
	case err != nil:
		return nil, fmt.Errorf("topic %s: %w", p.Topic, err)
	case !slices.Contains(partitions, p.Partition):
		return nil, fmt.Errorf("topic %s has no partition %d, it has %d", p.Topic, p.Partition, len(partitions))
	}
	logs, err := kafka.Logs(ctx, client, map[string][]int32{p.Topic: {p.Partition}}, sarama.ReadUncommitted)
	if err != nil {
		return nil, err
	}
	if log := logs[p.Topic][p.Partition]; p.Offset < log.From || p.Offset >= log.To {
		return nil, fmt.Errorf("there is no record %s: the partition has the offsets from %d to %d (exclusive)", p, log.From, log.To)
	}
	var found *sarama.ConsumerMessage
	reader := kafka.Reader{Client: client, Topic: p.Topic, Partition: p.Partition, Isolation: sarama.ReadUncommitted}
	_, err = reader.Read(ctx, p.Offset, p.Offset+1, func(m *sarama.ConsumerMessage, _ int64) error {
		found = m
		return nil
	})
	if err == nil && found == nil {
		err = fmt.Errorf("there is no record %s: compaction took it, or it is the mark of a transaction", p)
	}
	return found, err
}

const long = `Prints one record: timestamp, headers, key and value, made safe for a terminal.

Whoever may read the topic sees the value: --value none leaves it out, for a ticket or a
shared screen. Headers and keys are printed always.`

const example = `  ackpolicy show --topic orders --partition 3 --offset 1000
  ackpolicy show --topic orders --partition 3 --offset 1000 --value none
  ackpolicy show --topic orders --partition 3 --offset 1000 --value raw > order.bin`

// Command returns the command show.
func Command(env *cli.Env) *cobra.Command {
	var place Place
	var format string
	var json bool
	c := &cobra.Command{
		Use: "show", Short: "Print a record", Long: long, Example: example, Args: cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			err := place.Check(c)
			if err == nil && format != Raw && !slices.Contains(Formats, format) {
				err = fmt.Errorf("--value: want %s or %s", strings.Join(Formats, ", "), Raw)
			}
			if err != nil {
				return cli.UsageError{Err: err}
			}
			return run(c.Context(), env, place, format, json)
		},
	}
	place.Flags(env, c)
	c.Flags().StringVar(&format, "value", Auto, "`how` to print the value: "+strings.Join(Formats, ", ")+
		", or raw: the value's bytes and nothing else")
	c.Flags().BoolVar(&json, "json", false, "print one JSON object")
	cli.Complete(c, "value", append(slices.Clone(Formats), Raw)...)
	return c
}

func run(ctx context.Context, env *cli.Env, place Place, format string, json bool) error {
	client, err := env.Client("")
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	m, err := place.Find(ctx, client)
	if err != nil {
		return env.Kafka.Explain(err)
	}
	switch {
	case format == Raw:
		_, err = env.Out.Write(m.Value)
	case json:
		err = PrintJSON(env.Out, struct {
			Topic     string `json:"topic"`
			Partition int32  `json:"partition"`
			Offset    int64  `json:"offset"`
			Content
		}{m.Topic, m.Partition, m.Offset, ContentOf(m, true, format != None)})
	default:
		fmt.Fprintf(env.Out, "record     %s\n", place)
		Print(env.Out, m, format)
	}
	return err
}
