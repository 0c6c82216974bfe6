package redrive

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// table prints a row per letter. The first rows decide how wide the columns are.
type table struct {
	w       io.Writer
	to, all bool
	waiting [][]string // rows that the widths are not known for yet
	widths  []int
}

const alignedRows = 200

func newTable(w io.Writer, all, to bool) *table { return &table{w: w, all: all, to: to} }

func (t *table) row(l *letter, done bool, to string) {
	if t.widths == nil && t.waiting == nil {
		t.line("LETTER", "REJECTED", "ORIGIN", "GROUP", "HANDLER", "ATTEMPTS", "REJECTIONS", "KEY", "STATE", "TO", "REASON")
	}
	t.line(l.id(), orDash(stamp(l.RejectedAt)), clean(cut(l.Origin.String(), 60)), orDash(clean(cut(l.Group, 40))),
		orDash(clean(cut(l.Handler, 40))), positive(l.Attempts), positive(l.Rejections), text(l.record.Key, 30), state(done), to,
		orDash(clean(cut(l.Reason, 80))))
}

func (t *table) line(cells ...string) {
	line := cells[:8:8]
	if t.all {
		line = append(line, cells[8])
	}
	if t.to {
		line = append(line, cells[9])
	}
	line = append(line, cells[10])
	if t.widths != nil {
		t.print(line)
		return
	}
	if t.waiting = append(t.waiting, line); len(t.waiting) == alignedRows {
		t.flush()
	}
}

// flush prints the rows that wait, and fixes the widths for those to come.
func (t *table) flush() {
	for _, line := range t.waiting {
		for i, cell := range line {
			if i == len(t.widths) {
				t.widths = append(t.widths, 0)
			}
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, line := range t.waiting {
		t.print(line)
	}
	t.waiting = nil
}

func (t *table) print(line []string) {
	for i, cell := range line[:len(line)-1] {
		fmt.Fprintf(t.w, "%-*s  ", t.widths[i], cell)
	}
	fmt.Fprintln(t.w, line[len(line)-1])
}

// state is that of a letter. Kafka stores that it is done, not whether it was sent or skipped.
func state(done bool) string {
	if done {
		return "sent/skipped"
	}
	return "open"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func positive(n int) string {
	if n <= 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// clean makes text of others safe for a terminal.
func clean(s string) string {
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	s = s[:most]
	for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) { // not in the middle of a rune
		s = s[:len(s)-1]
	}
	return s[:max(0, len(s)-1)] + "…"
}

// text shows bytes: null as a dash, nothing as two quotes.
func text(b []byte, most int) string {
	switch {
	case b == nil:
		return "-"
	case len(b) == 0:
		return `""`
	}
	return clean(cut(string(b), most))
}

// show prints a letter whole.
func show(w io.Writer, l *letter, done bool) {
	out := bufio.NewWriter(w)
	defer out.Flush()
	fmt.Fprintf(out, "letter     %s, %s\n", l.id(), state(done))
	fmt.Fprintf(out, "origin     %s\n", clean(l.Origin.String()))
	fmt.Fprintf(out, "timestamp  %s\n", l.record.Timestamp.UTC().Format(time.RFC3339Nano))
	for _, h := range l.record.Headers {
		value := "null"
		if h.Value != nil {
			value = clean(string(h.Value))
		}
		fmt.Fprintf(out, "header     %s: %s\n", clean(string(h.Key)), value)
	}
	fmt.Fprintf(out, "key        %s\n", text(l.record.Key, len(l.record.Key)))
	if l.record.Value == nil {
		fmt.Fprintf(out, "value      null\n\n")
		return
	}
	fmt.Fprintf(out, "value      %d bytes\n%s\n\n", len(l.record.Value), multiline(l.record.Value))
}

// multiline is clean but for line breaks and tabs.
func multiline(b []byte) string {
	lines := strings.Split(string(b), "\n")
	for i, line := range lines {
		fields := strings.Split(line, "\t")
		for j, field := range fields {
			fields[j] = strings.ReplaceAll(clean(field), `\\`, `\`)
		}
		lines[i] = strings.Join(fields, "\t")
	}
	return strings.Join(lines, "\n")
}
