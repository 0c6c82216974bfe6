package cli

import (
	"testing"
	"time"
)

func TestRough(t *testing.T) {
	t.Parallel()
	for want, d := range map[string]time.Duration{
		"850ms": 851 * time.Millisecond, "12s": 12300 * time.Millisecond, "3m5s": 185 * time.Second, "59m59s": time.Hour - time.Second,
		"1h0m": time.Hour - time.Millisecond, "2h3m": 2*time.Hour + 3*time.Minute + 40*time.Second, "5d4h": 124*time.Hour + time.Minute,
	} {
		if got := Rough(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

// What is printable is shown as it is, in one line or many, and nothing else.
func TestClean(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`no such file C:\orders\1`: `no such file C:\orders\1`,
		`{"a": "b\n"}`:             `{"a": "b\n"}`,
		`got "\x00"`:               `got "\x00"`,
		"got \x00\xff\u202e\"":     `got \x00\xff\u202e"`,
		`\"`:                       `\"`,
	} {
		for name, got := range map[string]string{"Clean": Clean(text), "Text": Text([]byte(text), 100), "Multiline": Multiline([]byte(text))} {
			if got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
	}
	if got := Multiline([]byte("a\n\tb\x1b")); got != "a\n\tb\\x1b" {
		t.Errorf("several lines: %q", got)
	}
	if got := Clean("a\nb"); got != `a\nb` {
		t.Errorf("in one line: %q", got)
	}
}
