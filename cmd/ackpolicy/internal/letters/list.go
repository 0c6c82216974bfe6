package letters

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/record"
)

// list shows the chosen letters: for list and show, and for the dry run of what
// changes something.
func (r *run) list(ctx context.Context) error {
	out := bufio.NewWriter(r.env.Out)
	defer out.Flush()
	rows := &rows{table: cli.NewTable(out), all: r.all, to: r.command == cmdSend}
	found := newSummary()
	err := r.walk(ctx, func(p *part, l *letter) error {
		found.add(l)
		done := p.done.has(l.record.Offset)
		goes, target := "-", (*jsonPlace)(nil)
		if r.command == cmdSend {
			d, err := r.goals.of(l)
			found.goes(l, d, err)
			if err == nil {
				goes = fmt.Sprintf("%s %d", d.topic, d.partition(l))
				target = &jsonPlace{Topic: d.topic, Partition: d.partition(l)}
			}
		}
		switch {
		case r.json:
			j := forScripts(l, done, r.command == cmdShow)
			j.To = target
			return record.PrintJSON(out, j)
		case r.command == cmdShow:
			show(out, l, done)
		default:
			return rows.add(l, done, goes)
		}
		return nil
	}, nil)
	if err != nil {
		return err
	}
	if err := errors.Join(rows.table.Flush(), out.Flush()); err != nil {
		return err
	}
	if r.command == cmdShow && found.total > 0 || r.json && !r.dryRun {
		return nil
	}
	r.nothing(found)
	if !r.json {
		found.print(r.say)
	}
	if r.dryRun {
		return r.dry(found)
	}
	return nil
}

// nothing says why there is nothing to see.
func (r *run) nothing(found *summary) {
	chosen := ""
	if r.narrow() {
		chosen = " that the filters choose"
	}
	switch {
	case found.total > 0:
	case !slices.ContainsFunc(r.parts, func(p *part) bool { return p.log.from < p.log.to }):
		fmt.Fprintf(r.say, "There are no letters in %s%s: it is empty.\n", r.topic, r.at.words())
	case r.all:
		fmt.Fprintf(r.say, "There are no letters in %s%s.\n", r.topic, chosen)
	case r.command == cmdReopen:
		fmt.Fprintf(r.say, "No letter in %s%s was sent or skipped.\n", r.topic, chosen)
	default:
		fmt.Fprintf(r.say, "No letter in %s%s is open: all were sent or skipped, and 'list --all' shows them.\n", r.topic, chosen)
	}
}

func (r *run) dry(found *summary) error {
	if found.total == 0 {
		return nil
	}
	switch r.command {
	case cmdSend:
		if err := found.missing(); err != nil {
			return fmt.Errorf("%w. Create the topic, leave its letters out with --origin, or set another one with --to. Nothing would be sent", err)
		}
		r.troubles(found)
		fmt.Fprintf(r.say, "\nDry run: %s would be sent%s.\n", letters(found.sendable()), targets(found))
		if len(found.undeliverable) > 0 {
			return errUndelivered
		}
	case cmdSkip:
		fmt.Fprintf(r.say, "\nDry run: %s would be skipped.\n", letters(found.total))
	case cmdReopen:
		fmt.Fprintf(r.say, "\nDry run: %s would be opened again.\n", letters(found.total))
	}
	return nil
}
