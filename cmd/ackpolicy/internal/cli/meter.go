package cli

import (
	"io"
	"time"

	"github.com/cheggaaa/pb/v3"
)

// Meter is a progress line: on a terminal one that is written over, elsewhere a line
// now and then. Its methods write: it has no goroutine.
type Meter struct {
	bar   *pb.ProgressBar
	every time.Duration
	last  time.Time
	shown bool
}

const (
	terminalEvery = 100 * time.Millisecond
	linesEvery    = 10 * time.Second

	// What the rate and the time left are is not known at first.
	known   = `{{string . "doing"}}: {{counters . "%s of %s letters"}} ({{percent . "%.0f %%"}}){{speed . ", %s/s" ", ?/s"}}{{rtime . ", %s left" "" ""}}`
	unknown = `{{string . "doing"}}: {{counters . "" "%[1]s letters"}}{{speed . ", %s/s" ", ?/s"}}`
)

// NewMeter returns a meter of something that has a total, or 0 if that is not known.
func NewMeter(w io.Writer, doing string, total int) *Meter {
	return newMeter(w, doing, total, isTerminal(w))
}

func newMeter(w io.Writer, doing string, total int, terminal bool) *Meter {
	m := &Meter{bar: pb.New(total).Set("doing", doing).Set(pb.Static, true), every: linesEvery, last: time.Now()}
	line := known
	if total == 0 {
		line = unknown
	}
	if terminal {
		m.every = terminalEvery
		m.bar.Set(pb.Terminal, true).Set(pb.CleanOnFinish, true)
	} else {
		line += "\n"
	}
	m.bar.SetTemplateString(line).SetWriter(w).Start()
	_ = m.bar.String() // the speed counts from here on
	return m
}

// Update says how far it has come.
func (m *Meter) Update(n int) {
	m.bar.SetCurrent(int64(n))
	if now := time.Now(); now.Sub(m.last) >= m.every {
		m.last, m.shown = now, true
		m.bar.Write()
	}
}

// Clear makes room for other output.
func (m *Meter) Clear() {
	m.bar.Finish()
	if m.shown && m.every == terminalEvery {
		m.shown = false
		m.bar.Write()
	}
}
