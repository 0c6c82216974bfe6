package redrive

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// meter is a progress line: on a terminal one that is written over, elsewhere a line
// now and then.
type meter struct {
	w        io.Writer
	terminal bool
	doing    string
	total    int // 0: not known
	began    time.Time
	last     time.Time
	width    int // of the line on the terminal
}

const (
	terminalEvery = 100 * time.Millisecond
	linesEvery    = 10 * time.Second
)

func newMeter(w io.Writer, doing string, total int) *meter {
	now := time.Now()
	return &meter{w: w, terminal: isTerminal(w), doing: doing, total: total, began: now, last: now}
}

func (m *meter) update(n int) {
	now := time.Now()
	if every := map[bool]time.Duration{true: terminalEvery, false: linesEvery}[m.terminal]; now.Sub(m.last) < every {
		return
	}
	m.last = now
	line := m.line(n, now.Sub(m.began))
	if !m.terminal {
		fmt.Fprintln(m.w, line)
		return
	}
	fmt.Fprintf(m.w, "\r%s%s", line, strings.Repeat(" ", max(0, m.width-len(line))))
	m.width = len(line)
}

func (m *meter) line(n int, took time.Duration) string {
	rate := float64(n) / max(took.Seconds(), 0.001)
	if m.total == 0 {
		return fmt.Sprintf("%s: %d letters, %.0f/s", m.doing, n, rate)
	}
	line := fmt.Sprintf("%s: %d of %d letters (%d %%), %.0f/s", m.doing, n, m.total, 100*n/m.total, rate)
	if n > 0 && n < m.total {
		left := time.Duration(float64(took) * float64(m.total-n) / float64(n))
		line += fmt.Sprintf(", %v left", left.Round(time.Second))
	}
	return line
}

// clear makes room for other output.
func (m *meter) clear() {
	if m.width > 0 {
		fmt.Fprintf(m.w, "\r%s\r", strings.Repeat(" ", m.width))
		m.width = 0
	}
}

// pace holds letters back to a rate.
type pace struct {
	rate float64 // a second; 0: none
	next time.Time
}

// batch is how many letters may go at once: a quarter of a second's, so that they come evenly.
func (p *pace) batch(most int) int {
	if p.rate == 0 {
		return most
	}
	return max(1, min(most, int(p.rate/4)))
}

// wait waits until n more letters may go.
func (p *pace) wait(ctx context.Context, n int) error {
	if p.rate == 0 {
		return context.Cause(ctx)
	}
	now := time.Now()
	if p.next.IsZero() {
		p.next = now
	}
	if late := now.Add(-time.Second); p.next.Before(late) {
		p.next = late // no more than that is made up for
	}
	if !wait.For(p.next.Sub(now), ctx.Done()) {
		return context.Cause(ctx)
	}
	p.next = p.next.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
	return context.Cause(ctx)
}
