package letters

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/record"
)

// change carries out send, skip and reopen, while nobody else does.
func (r *run) change(ctx context.Context) (err error) {
	// Its own connections: on those of the others a heartbeat could come late.
	beats, err := r.env.Client(r.group)
	if err != nil {
		return err
	}
	defer func() { _ = beats.Close() }()
	lock, held, err := acquire(ctx, beats, r.group, r.topic, r.partitions, sessionTimeout, func(holder string) {
		fmt.Fprintf(r.env.Err, "Another redrive of %s is at work, or was killed a moment ago: %s. Waiting up to %v.\n",
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
		if err := r.consent(ctx, found); err != nil {
			return err
		}
		if err := r.send(held, sender, found.sendable()); err != nil {
			return err
		}
	}
	if len(found.undeliverable) > 0 {
		return errUndelivered
	}
	return nil
}

// send sends the chosen letters that have a destination, in batches.
func (r *run) send(ctx context.Context, sender *sender, total int) (err error) {
	sent := 0
	meter := cli.NewMeter(r.env.Err, "sending", total)
	defer func() {
		meter.Clear()
		r.outcome(ctx, sent, total, err)
	}()
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
		meter.Update(sent)
		err := r.report(batch)
		batch, size, next = nil, 0, nil
		return err
	}
	return r.walk(ctx, func(p *part, l *letter) error {
		d, err := r.goals.of(l)
		if err != nil {
			return nil // reported before
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
		if err := record.PrintJSON(r.env.Out, j); err != nil {
			return err
		}
	}
	return nil
}

// outcome says how it went.
func (r *run) outcome(ctx context.Context, sent, total int, err error) {
	switch {
	case err == nil:
		fmt.Fprintf(r.say, "Sent %s.\n", letters(sent))
	case cli.IsInterrupt(ctx, err) && !errors.Is(err, errLost):
		fmt.Fprintf(r.say, "Interrupted: %d of %s sent. The same command continues from there.\n", sent, letters(total))
	default:
		fmt.Fprintf(r.say, "Stopped: %d of %s sent. The same command continues from there.\n", sent, letters(total))
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
