package cli

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMeter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		m := NewMeter(&lines, "sending", 400)
		for i := range 250 {
			time.Sleep(100 * time.Millisecond)
			m.Update(i + 1)
		}
		m.Clear()
		want := "sending: 100 of 400 letters (25 %), 10/s, 30s left\nsending: 200 of 400 letters (50 %), 10/s, 20s left\n"
		if lines.String() != want {
			t.Errorf("not on a terminal: got %q", lines.String())
		}

		var screen bytes.Buffer
		m = newMeter(&screen, "reading", 0, true)
		time.Sleep(time.Second)
		m.Update(1000)
		m.Update(2000) // too soon
		time.Sleep(time.Second)
		m.Update(2000)
		m.Clear()
		shown := strings.Split(screen.String(), "\r")
		for i := range shown {
			shown[i] = strings.TrimRight(shown[i], " ")
		}
		want = "|reading: 1000 letters, 1000/s|reading: 2000 letters, 1000/s||"
		if strings.Join(shown, "|") != want {
			t.Errorf("on a terminal: got %q", screen.String())
		}
	})
}
