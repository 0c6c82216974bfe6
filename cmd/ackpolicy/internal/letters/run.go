package letters

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/kafka"
)

// errUndelivered is that some letters cannot be sent, which was said.
const errUndelivered = cli.ExitCode(3)

var errNoConsent = errors.New("nothing was sent")

// run is one use of the command.
type run struct {
	*options
	env        *cli.Env
	client     sarama.Client
	goals      *destinations
	partitions []int32   // all of the topic
	parts      []*part   // those that are asked for
	used       bool      // Kafka stores progress of the group
	say        io.Writer // for what is said to people: not stdout, if that is for scripts
}

// part is a partition of the dead letter topic.
type part struct {
	id   int32
	log  span   // as it was at the start
	done *marks // what is done of it
}

func (r *run) execute(ctx context.Context) (err error) {
	o := r.options
	if r.client, err = r.env.Client(o.group); err != nil {
		return err
	}
	defer func() { _ = r.client.Close() }()
	r.goals = &destinations{client: r.client, from: o.topic, to: o.to}
	if o.json {
		r.say = r.env.Err
	}
	if err := r.findPartitions(ctx); err != nil {
		return err
	}
	if o.command == cmdList || o.command == cmdShow || o.dryRun {
		if err := r.load(ctx, false); err != nil {
			return err
		}
		return r.list(ctx)
	}
	return r.change(ctx)
}

// findPartitions learns the topic's partitions and their bounds: what comes later is
// not part of this run.
func (r *run) findPartitions(ctx context.Context) error {
	partitions, err := r.client.Partitions(r.topic)
	if errors.Is(err, sarama.ErrUnknownTopicOrPartition) || err == nil && len(partitions) == 0 {
		err = kafka.ErrNoTopic
	}
	if errors.Is(err, sarama.ErrOutOfBrokers) {
		return r.env.Kafka.Explain(err)
	}
	if err != nil {
		return fmt.Errorf("dead letter topic %s: %w", r.topic, err)
	}
	slices.Sort(partitions)
	r.partitions = partitions
	for p := range r.at {
		if !slices.Contains(partitions, p) {
			return cli.UsageError{Err: fmt.Errorf("--at: topic %s has no partition %d, it has %d", r.topic, p, len(partitions))}
		}
	}
	if r.at != nil {
		partitions = slices.DeleteFunc(slices.Clone(partitions), func(p int32) bool {
			_, asked := r.at[p]
			return !asked
		})
	}
	logs, err := kafka.Logs(ctx, r.client, map[string][]int32{r.topic: partitions}, sarama.ReadCommitted)
	if err != nil {
		return err
	}
	for _, p := range partitions {
		log := logs[r.topic][p]
		r.parts = append(r.parts, &part{id: p, log: span{log.From, log.To}})
	}
	return nil
}

// load reads what is done.
func (r *run) load(ctx context.Context, stable bool) error {
	all, err := kafka.Offsets(ctx, r.client, r.group, map[string][]int32{r.topic: r.partitions}, stable)
	if err != nil {
		return err
	}
	progress := all[r.topic]
	r.used = len(progress) > 0
	for _, p := range r.parts {
		s, found := progress[p.id]
		p.done = &marks{floor: p.log.from}
		if !found {
			continue
		}
		if p.done, err = marksOf(r.topic, p.id, s, p.log); err != nil {
			return fmt.Errorf("group %s, topic %s, partition %d: %w. Set another --group, or begin again: "+
				"kafka-consumer-groups.sh --group %s --topic %s --reset-offsets --to-earliest --execute",
				r.group, r.topic, p.id, err, r.group, r.topic)
		}
	}
	return nil
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// walk calls visit for the chosen letters of the parts, in order, and done with the end
// of each part, from which on there is no more letter.
func (r *run) walk(ctx context.Context, visit func(p *part, l *letter) error, ended func(p *part, rest span) error) error {
	left := r.limit
	for _, p := range r.parts {
		s := span{p.done.floor, p.log.to}
		if r.all || r.command == cmdReopen {
			s.from = p.log.from
		}
		s = r.at.within(p.id, s)
		reader := &kafka.Reader{Client: r.client, Topic: r.topic, Partition: p.id, Isolation: sarama.ReadCommitted}
		rest, err := reader.Read(ctx, s.from, s.to, func(m *sarama.ConsumerMessage, from int64) error {
			if done := p.done.has(m.Offset); !r.all && done != (r.command == cmdReopen) {
				return nil
			}
			l := parseLetter(m, from)
			if !r.chooses(l) {
				return nil
			}
			if err := visit(p, l); err != nil {
				return err
			}
			if left--; left == 0 {
				return errEnough
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
		if ended != nil {
			if errors.Is(err, errEnough) {
				s.to = rest
			}
			if err := ended(p, span{rest, s.to}); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
	return nil
}

// consent asks before all letters are sent, where no filter chooses some.
func (r *run) consent(ctx context.Context, found *summary) error {
	if r.narrow() || r.limit > 0 || r.yes {
		return nil
	}
	what := fmt.Sprintf("%s%s", letters(found.sendable()), targets(found))
	if r.env.Ask == nil {
		return fmt.Errorf("no filter chooses among the letters of %s: to send all, %s, say --yes: %w", r.topic, what, errNoConsent)
	}
	yes, err := r.env.Ask(ctx, "Send all "+what+"? [y/N] ")
	if err == nil && !yes {
		err = errNoConsent
	}
	return err
}
