// Package redrive is the command ackpolicy-redrive: it reads a dead letter topic and
// sends letters back to the topics that they are from.
package redrive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/IBM/sarama"
)

// Exit codes.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUndelivered = 3
	exitInterrupted = 130
)

var errUndelivered = errors.New("some letters cannot be sent")

// Main runs the command until it is done or ctx ends, and answers its exit code.
func Main(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, getenv, time.Now(), stdout)
	if err == nil {
		r := &run{options: o, stdout: stdout, stderr: stderr, say: stdout}
		if isTerminal(stdin) && isTerminal(stderr) {
			r.ask = func(question string) (bool, error) { return ask(ctx, stdin, stderr, question) }
		}
		err = r.execute(ctx)
	}
	var mistake usageError
	switch {
	case err == nil, errors.Is(err, errShown):
		return exitDone
	case errors.As(err, &mistake):
		fmt.Fprintf(stderr, "ackpolicy-redrive: %v\n'ackpolicy-redrive help' says how to use it.\n", mistake)
		return exitUsage
	case errors.Is(err, errUndelivered):
		return exitUndelivered
	case interrupted(ctx, err):
		return exitInterrupted
	}
	fmt.Fprintf(stderr, "ackpolicy-redrive: %v\n", err)
	return exitFailed
}

// run is one use of the command.
type run struct {
	*options
	client         sarama.Client
	goals          *destinations
	partitions     []int32 // all of the topic
	parts          []*part // those that are asked for
	used           bool    // Kafka stores progress of the group
	stdout, stderr io.Writer
	say            io.Writer                                   // for what is said to people: not stdout, if that is for scripts
	ask            func(question string) (yes bool, err error) // nil: there is nobody to ask
}

// part is a partition of the dead letter topic.
type part struct {
	id   int32
	log  span   // as it was at the start
	done *marks // what is done of it
}

func (r *run) execute(ctx context.Context) (err error) {
	o := r.options
	if o.verbose {
		sarama.Logger = log.New(r.stderr, "kafka: ", log.LstdFlags)
	}
	if r.client, err = o.connection.client(o.group); err != nil {
		return err
	}
	defer func() { _ = r.client.Close() }()
	r.goals = &destinations{client: r.client, from: o.topic, to: o.to}
	if o.json {
		r.say = r.stderr
	}
	if err := r.findPartitions(); err != nil {
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
func (r *run) findPartitions() error {
	partitions, err := r.client.Partitions(r.topic)
	if errors.Is(err, sarama.ErrUnknownTopicOrPartition) || err == nil && len(partitions) == 0 {
		err = errNoTopic
	}
	if errors.Is(err, sarama.ErrOutOfBrokers) {
		hint := ""
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			hint = ". A broker that wants TLS, or other credentials, closes the connection"
		}
		return fmt.Errorf("cannot connect to %s: %w%s", strings.Join(r.brokers, ","), err, hint)
	}
	if err != nil {
		return fmt.Errorf("dead letter topic %s: %w", r.topic, err)
	}
	slices.Sort(partitions)
	r.partitions = partitions
	for p := range r.at {
		if !slices.Contains(partitions, p) {
			return usageError{fmt.Errorf("-at: topic %s has no partition %d, it has %d", r.topic, p, len(partitions))}
		}
	}
	for _, p := range partitions {
		if _, asked := r.at[p]; r.at != nil && !asked {
			continue
		}
		log, err := bounds(r.client, r.topic, p)
		if err != nil {
			return fmt.Errorf("cannot learn where partition %d of %s ends: %w", p, r.topic, err)
		}
		r.parts = append(r.parts, &part{id: p, log: log})
	}
	return nil
}

// load reads what is done.
func (r *run) load(ctx context.Context, stable bool) error {
	progress, err := loadProgress(ctx, r.client, r.group, r.topic, r.partitions, stable)
	if err != nil {
		return err
	}
	r.used = len(progress) > 0
	for _, p := range r.parts {
		s, found := progress[p.id]
		p.done = &marks{floor: p.log.from}
		if !found {
			continue
		}
		if p.done, err = marksOf(r.topic, p.id, s, p.log); err != nil {
			return fmt.Errorf("group %s, topic %s, partition %d: %w. Set another -group, or begin again: "+
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
		reader := &reader{client: r.client, topic: r.topic, partition: p.id}
		rest, err := reader.read(ctx, s, func(m *sarama.ConsumerMessage, from int64) error {
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
