package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
)

type row struct {
	name, guarantee   string
	rate, low, high   float64
	allocs, cpu, peak float64
	ratio, share      float64 // to the baseline, of the limit
}

type table struct {
	c    bcase
	rows []row
}

func median(rs []result, of func(result) float64) float64 {
	values := make([]float64, len(rs))
	for i, r := range rs {
		values[i] = of(r)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func newTable(c bcase, who []string, results map[string][]result) table {
	t := table{c: c}
	rate := func(r result) float64 { return r.Rate }
	var base, limit float64
	if rs := results[c.baseline]; len(rs) > 0 {
		base = median(rs, rate)
	}
	if rs := results[c.limit]; len(rs) > 0 {
		limit = median(rs, rate)
	}
	for _, w := range who {
		rs := results[w]
		consumer, _ := find(w)
		r := row{
			name: w, guarantee: consumer.guarantee, rate: median(rs, rate),
			low:    slices.MinFunc(rs, func(a, b result) int { return int(a.Rate - b.Rate) }).Rate,
			high:   slices.MaxFunc(rs, func(a, b result) int { return int(a.Rate - b.Rate) }).Rate,
			allocs: median(rs, func(r result) float64 { return r.Allocs }),
			cpu:    median(rs, func(r result) float64 { return r.CPUMicros }),
			peak:   median(rs, func(r result) float64 { return r.PeakMiB }),
		}
		if base > 0 {
			r.ratio = r.rate / base
		}
		if limit > 0 {
			r.share = 100 * r.rate / limit
		}
		t.rows = append(t.rows, r)
	}
	return t
}

func (t table) lines() [][]string {
	out := [][]string{{"consumer", "records/s", "min–max", "× stock", "% of limit", "allocs", "CPU µs", "peak MiB", "guarantee"}}
	for _, r := range t.rows {
		ratio, share := "", ""
		if r.ratio > 0 {
			ratio = fmt.Sprintf("%.2f", r.ratio)
		}
		if r.share > 0 {
			share = fmt.Sprintf("%.0f", r.share)
		}
		out = append(out, []string{
			r.name, fmt.Sprintf("%.0f", r.rate), fmt.Sprintf("%.0f–%.0f", r.low, r.high), ratio, share,
			fmt.Sprintf("%.1f", r.allocs), fmt.Sprintf("%.2f", r.cpu), fmt.Sprintf("%.0f", r.peak), r.guarantee,
		})
	}
	return out
}

func (t table) text() string {
	lines := t.lines()
	width := make([]int, len(lines[0]))
	for _, l := range lines {
		for i, cell := range l {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	var s strings.Builder
	fmt.Fprintf(&s, "\n%s: %s\n\n", t.c.name, t.c.about)
	for _, l := range lines {
		for i, cell := range l {
			pad := strings.Repeat(" ", width[i]-len([]rune(cell)))
			if i == 0 || i == len(l)-1 {
				s.WriteString(cell + pad + "  ")
			} else {
				s.WriteString(pad + cell + "  ")
			}
		}
		s.WriteString("\n")
	}
	return s.String()
}

func (b *bench) write(file string) error {
	var s strings.Builder
	fmt.Fprintf(&s, "Medians of %d runs, each consumer in a process of its own, in turn on one broker; %s, %d processors shared with the broker.\n",
		b.runs, runtime.Version(), runtime.NumCPU())
	for _, t := range b.tables {
		fmt.Fprintf(&s, "\n### %s\n\n%s.\n\n", t.c.name, t.c.about)
		for i, l := range t.lines() {
			fmt.Fprintf(&s, "| %s |\n", strings.Join(l, " | "))
			if i == 0 {
				s.WriteString("|" + strings.Repeat("---|", len(l)) + "\n")
			}
		}
	}
	if err := os.WriteFile(file, []byte(s.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(strings.TrimSuffix(file, ".md")+".svg", []byte(b.chart()), 0o644)
}

// chart draws one bar a consumer and case, as long as its rate beside the best of its case.
func (b *bench) chart() string {
	const left, width, bar = 200, 420, 18
	var s strings.Builder
	y := 20
	for _, t := range b.tables {
		best := 0.0
		for _, r := range t.rows {
			best = max(best, r.rate)
		}
		fmt.Fprintf(&s, `<text x="8" y="%d" font-weight="bold">%s: %s</text>`+"\n", y, t.c.name, t.c.about)
		y += 10
		for _, r := range t.rows {
			fill := "#9aa5b1"
			if strings.HasPrefix(r.name, "ackpolicy") {
				fill = "#2b8a3e"
			}
			w := int(width * r.rate / best)
			fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%d" height="%d" fill="%s"/><text x="%d" y="%d">%.0f/s</text>`+"\n",
				left-8, y+bar-5, r.name, left, y, w, bar-4, fill, left+w+6, y+bar-5, r.rate)
			y += bar
		}
		y += 26
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="760" height="%d" font-family="sans-serif" font-size="12">`+
		"\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n%s</svg>\n", y, s.String())
}
