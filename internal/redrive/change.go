package redrive

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
)

// change carries out send, skip and reopen, while nobody else does.
func (r *run) change(ctx context.Context) (err error) {
	// Its own connections: on those of the others a heartbeat could come late.
	beats, err := r.connection.client(r.group)
	if err != nil {
		return err
	}
	defer func() { _ = beats.Close() }()
	lock, held, err := acquire(ctx, beats, r.group, r.topic, r.ids(), sessionTimeout, func(holder string) {
		fmt.Fprintf(r.stderr, "Another redrive of %s is at work, or was killed a moment ago: %s. Waiting up to %v.\n",
			r.topic, holder, sessionTimeout+2*time.Second)
	})
	if err != nil {
		return err
	}
	defer lock.release()
	sender, err := newSender(r.client, lock, r.topic)
	if err != nil {
		return err
	}
	defer sender.close()
	if err := r.load(held, true); err != nil {
		return err
	}
	if r.command != cmdSend {
		return r.mark(held, sender)
	}
	found, err := r.plan(held)
	if err != nil {
		return err
	}
	r.nothing(found)
	r.troubles(found)
	if found.sendable() > 0 {
		if err := r.send(held, sender, found.sendable()); err != nil {
			return err
		}
	}
	if len(found.undeliverable) > 0 {
		return errUndelivered
	}
	return nil
}

// plan looks at what is to be sent before anything is.
func (r *run) plan(ctx context.Context) (*summary, error) {
	found := newSummary()
	to := &destinations{client: r.client, from: r.topic, to: r.to}
	oldest, horizon := time.Now(), time.Time{}
	stale := 0
	if !r.firstRun && !slices.ContainsFunc(r.parts, func(p *part) bool { return p.anything }) {
		horizon = oldest.Add(-offsetsRetention(r.client))
	}
	meter := newMeter(r.stderr, "reading", 0)
	defer meter.clear()
	err := r.walk(ctx, func(_ *part, l *letter) error {
		found.add(l)
		d, err := to.of(l)
		found.goes(l, d, err)
		if when := l.RejectedAt; !when.IsZero() && when.Before(horizon) || when.IsZero() && l.record.Timestamp.Before(horizon) {
			stale++
		}
		meter.update(found.total)
		return nil
	}, nil)
	if err != nil {
		return nil, err
	}
	if err := found.missing(); err != nil {
		return nil, fmt.Errorf("%w. Create the topic, leave its letters out with -origin, or set another one with -to. Nothing was sent", err)
	}
	if stale > 0 {
		return nil, fmt.Errorf("group %s has no progress stored, and %s older than what Kafka remembers of a group that is not used "+
			"(offsets.retention.minutes): they may have been sent before. If nothing was ever sent from %s, say -first-run; "+
			"else choose younger letters with -since. Nothing was sent", r.group, plural(stale, "letter is", "letters are"), r.topic)
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
			hint = " Set a destination with -to."
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

// send sends the chosen letters that have a destination, in batches.
func (r *run) send(ctx context.Context, sender *sender, total int) (err error) {
	sent := 0
	meter := newMeter(r.stderr, "sending", total)
	defer func() {
		meter.clear()
		r.outcome(ctx, sent, total, err)
	}()
	to := &destinations{client: r.client, from: r.topic, to: r.to}
	pace := &pace{rate: r.rate}
	var batch []*sarama.ProducerMessage
	size := 0
	var next *marks // of the partition, once the batch is sent
	flush := func(p *part) error {
		if len(batch) == 0 {
			return nil
		}
		if err := pace.wait(ctx, len(batch)); err != nil {
			return err
		}
		if err := sender.send(batch, map[int32]*marks{p.id: next}); err != nil {
			return err
		}
		p.done = next
		sent += len(batch)
		meter.update(sent)
		err := r.report(batch)
		batch, size, next = nil, 0, nil
		return err
	}
	return r.walk(ctx, func(p *part, l *letter) error {
		d, err := to.of(l)
		if err != nil {
			return nil // told before
		}
		if next == nil {
			next = p.done.clone()
		}
		next.add(span{l.from, l.record.Offset + 1})
		m := d.message(l, r.headers, r.timestamp)
		m.Metadata = l
		batch = append(batch, m)
		if size += m.ByteSize(2); len(batch) >= pace.batch(r.batch) || size >= maxBatchBytes {
			return flush(p)
		}
		return nil
	}, func(p *part, rest span) error {
		if next != nil && next.has(rest.from-1) {
			next.add(rest) // nothing but marks of transactions
		}
		return flush(p)
	})
}

// A transaction has not many more bytes than this.
const maxBatchBytes = 8 << 20

// report prints what was sent, for scripts.
func (r *run) report(batch []*sarama.ProducerMessage) error {
	if !r.json {
		return nil
	}
	for _, m := range batch {
		l, ok := m.Metadata.(*letter)
		if !ok {
			continue
		}
		j := forScripts(l, true, false)
		j.To = &jsonPlace{Topic: m.Topic, Partition: m.Partition, Offset: &m.Offset}
		if err := printJSON(r.stdout, j); err != nil {
			return err
		}
	}
	return nil
}

// interrupted is whether the error is that ctx has ended.
func interrupted(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Cause(ctx))
}

// outcome says how it went.
func (r *run) outcome(ctx context.Context, sent, total int, err error) {
	switch {
	case err == nil:
		fmt.Fprintf(r.say, "Sent %s.\n", letters(sent))
	case interrupted(ctx, err) && !errors.Is(err, errLost):
		fmt.Fprintf(r.say, "Interrupted: %d of %s sent. The same command goes on from there.\n", sent, letters(total))
	default:
		fmt.Fprintf(r.say, "Stopped: %d of %s sent. The same command goes on from there.\n", sent, letters(total))
	}
}

// mark carries out skip and reopen: all of it, or nothing.
func (r *run) mark(ctx context.Context, sender *sender) error {
	changed := map[int32]*marks{}
	n := 0
	err := r.walk(ctx, func(p *part, l *letter) error {
		m := changed[p.id]
		if m == nil {
			m = p.done.clone()
			changed[p.id] = m
		}
		if n++; r.command == cmdReopen {
			m.remove(l.record.Offset)
		} else {
			m.add(span{l.from, l.record.Offset + 1})
		}
		return nil
	}, nil)
	if err != nil {
		return err
	}
	if n == 0 {
		r.nothing(newSummary())
		return nil
	}
	if err := sender.send(nil, changed); err != nil {
		return err
	}
	what := "skipped"
	if r.command == cmdReopen {
		what = "opened again"
	}
	_, err = fmt.Fprintf(r.say, "%s %s.\n", letters(n), what)
	return err
}
