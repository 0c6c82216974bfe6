package letters

import (
	"bufio"
	"fmt"
	"io"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/record"
)

// rows prints a row per letter.
type rows struct {
	table   *cli.Table
	to, all bool
	header  bool // was printed
}

func (r *rows) add(l *letter, done bool, to string) error {
	if !r.header {
		r.header = true
		if err := r.line("LETTER", "REJECTED", "ORIGIN", "GROUP", "HANDLER", "ATTEMPTS", "REJECTIONS", "KEY", "STATE", "TO", "REASON"); err != nil {
			return err
		}
	}
	return r.line(l.id(), cli.OrDash(cli.Stamp(l.RejectedAt)), cli.Clean(cli.Cut(l.Origin.String(), 60)), cli.OrDash(cli.Clean(cli.Cut(l.Group, 40))),
		cli.OrDash(cli.Clean(cli.Cut(l.Handler, 40))), cli.Positive(l.Attempts), cli.Positive(l.Rejections), cli.Text(l.record.Key, 30),
		state(done), to, cli.OrDash(cli.Clean(cli.Cut(l.Reason, 80))))
}

func (r *rows) line(cells ...string) error {
	line := cells[:8:8]
	if r.all {
		line = append(line, cells[8])
	}
	if r.to {
		line = append(line, cells[9])
	}
	return r.table.Row(append(line, cells[10])...)
}

// state is that of a letter. Kafka stores that it is done, not whether it was sent or skipped.
func state(done bool) string {
	if done {
		return "sent/skipped"
	}
	return "open"
}

// show prints a letter whole.
func show(w io.Writer, l *letter, done bool) {
	out := bufio.NewWriter(w)
	defer out.Flush()
	fmt.Fprintf(out, "letter     %s, %s\n", l.id(), state(done))
	fmt.Fprintf(out, "origin     %s\n", cli.Clean(l.Origin.String()))
	record.Print(out, l.record, record.Auto)
	fmt.Fprintln(out)
}
