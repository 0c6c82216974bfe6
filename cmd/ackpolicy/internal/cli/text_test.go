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
