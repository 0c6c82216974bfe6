package ackpolicyweb

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	mostError = 2000 // bytes of an error that are shown
	mostKey   = 120  // bytes of a key
)

// name is how the page names a record.
func name(topic string, partition int32, offset int64) string {
	return place(topic, partition) + "@" + strconv.FormatInt(offset, 10)
}

func place(topic string, partition int32) string {
	return clean(topic, 300) + "/" + strconv.Itoa(int(partition))
}

// clean cuts a text, and replaces what is not to be seen, or turns the direction of what follows.
func clean(s string, most int) string {
	cut := len(s) > most
	if cut {
		for most > 0 && !utf8.RuneStart(s[most]) {
			most--
		}
		s = s[:most]
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == '\n', r == '\t':
			b.WriteRune(r)
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\ufffd"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case !unicode.IsPrint(r):
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		default:
			b.WriteRune(r)
		}
	}
	if cut {
		b.WriteString(" …")
	}
	return b.String()
}

func textOf(err error) (text string) {
	if err == nil {
		return ""
	}
	defer func() {
		if v := recover(); v != nil {
			text = fmt.Sprintf("the error's own method panicked: %v", v)
		}
	}()
	return clean(err.Error(), mostError)
}

// key names a record's key; "": it has none, or it is not known.
func (h *Handler) key(key []byte) string {
	switch {
	case key == nil:
		return ""
	case !h.options.ShowKeys:
		mac := hmac.New(sha256.New, h.secret)
		_, _ = mac.Write(key)
		return "key " + hex.EncodeToString(mac.Sum(nil)[:4])
	case len(key) == 0:
		return "key \"\""
	}
	return "key " + strings.ReplaceAll(clean(string(key), mostKey), "\n", `\n`)
}

// count writes a number with commas.
func count[N int | int32 | int64](n N) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// plural writes a number of things.
func plural[N int | int32 | int64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + many
}

// took writes a duration in at most two units.
func took(d time.Duration) string {
	switch {
	case d < time.Second:
		return "under 1 s"
	case d < time.Minute:
		return strconv.Itoa(int(d/time.Second)) + " s"
	case d < time.Hour:
		return two(d, time.Minute, "min", time.Second, "s")
	case d < 24*time.Hour:
		return two(d, time.Hour, "h", time.Minute, "min")
	}
	return two(d, 24*time.Hour, "d", time.Hour, "h")
}

func two(d, big time.Duration, bigName string, small time.Duration, smallName string) string {
	s := fmt.Sprintf("%d %s", d/big, bigName)
	if n := d % big / small; n > 0 {
		s += fmt.Sprintf(" %d %s", n, smallName)
	}
	return s
}

// clock writes a time of the day.
func clock(t time.Time) string { return t.UTC().Format("15:04:05") + " UTC" }

// size writes a number of bytes.
func size(n int64) string {
	switch {
	case n < 1<<10:
		return plural(n, "byte", "bytes")
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// moment is a point in time, and how long it is ago.
type moment struct{ Stamp, Clock, Ago string }

func momentOf(t, now time.Time) moment {
	if t.IsZero() {
		return moment{}
	}
	return moment{t.UTC().Format(time.RFC3339), clock(t), took(now.Sub(t))}
}
