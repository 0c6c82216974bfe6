package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// OrDash returns a dash for nothing.
func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Positive returns a dash for a number that is not known.
func Positive(n int) string {
	if n <= 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

// Stamp returns a time, "" if it is not known.
func Stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// Rough returns how long something is, as exactly as matters: 850ms, 12s, 3m5s, 2h3m, 5d4h.
func Rough(d time.Duration) string {
	if d < time.Second {
		return d.Round(10 * time.Millisecond).String()
	}
	switch d = d.Round(time.Second); {
	case d < time.Hour:
		return d.String()
	case d < 24*time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// Clean makes text of others safe for a terminal, as the page does: what cannot be printed is escaped, and
// nothing else. A backslash stays one, so the text is easy to read and to search for, not to decode.
func Clean(s string) string {
	quoted := strconv.Quote(s)
	return printable.Replace(quoted[1 : len(quoted)-1])
}

var printable = strings.NewReplacer(`\\`, `\`, `\"`, `"`)

// Cut shortens a text to about so many bytes.
func Cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	s = s[:most]
	for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) { // not in the middle of a rune
		s = s[:len(s)-1]
	}
	return s[:max(0, len(s)-1)] + "…"
}

// Text shows bytes: null as a dash, nothing as two quotes.
func Text(b []byte, most int) string {
	switch {
	case b == nil:
		return "-"
	case len(b) == 0:
		return `""`
	}
	return Clean(Cut(string(b), most))
}

// Multiline is Clean but for line breaks and tabs.
func Multiline(b []byte) string {
	lines := strings.Split(string(b), "\n")
	for i, line := range lines {
		fields := strings.Split(line, "\t")
		for j, field := range fields {
			fields[j] = Clean(field)
		}
		lines[i] = strings.Join(fields, "\t")
	}
	return strings.Join(lines, "\n")
}

// Plural counts things.
func Plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
