package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

type row struct {
	name, guarantee   string
	missing           string // why there are no figures; empty: there are
	rate, low, high   float64
	allocs, cpu, peak float64 // 0: not known
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
	middle := len(values) / 2
	if len(values)%2 == 0 {
		return (values[middle-1] + values[middle]) / 2
	}
	return values[middle]
}

// newTable has a row for each consumer. One that is no key of the results is not
// there; one that is, without a result, failed in every run.
func newTable(c bcase, who []string, results map[string][]result) table {
	t := table{c: c}
	rate := func(r result) float64 { return r.Rate }
	byRate := func(a, b result) int { return cmp.Compare(a.Rate, b.Rate) }
	var base, limit float64
	if rs := results[c.baseline]; len(rs) > 0 {
		base = median(rs, rate)
	}
	if rs := results[c.limit]; len(rs) > 0 {
		limit = median(rs, rate)
	}
	for _, w := range who {
		consumer, _ := find(w)
		r := row{name: w, guarantee: consumer.guarantee}
		switch rs, able := results[w]; {
		case !able:
			r.missing = "not there"
		case len(rs) == 0:
			r.missing = "failed"
		default:
			r.rate = median(rs, rate)
			r.low, r.high = slices.MinFunc(rs, byRate).Rate, slices.MaxFunc(rs, byRate).Rate
			r.allocs = median(rs, func(r result) float64 { return r.Allocs })
			r.cpu = median(rs, func(r result) float64 { return r.CPUMicros })
			r.peak = median(rs, func(r result) float64 { return r.PeakMiB })
			if base > 0 {
				r.ratio = r.rate / base
			}
			if limit > 0 {
				r.share = 100 * r.rate / limit
			}
		}
		t.rows = append(t.rows, r)
	}
	return t
}

func (t table) lines() [][]string {
	out := [][]string{{"consumer", "records/s", "min–max", "× stock", "% of limit", "allocs", "CPU s/M", "peak MiB", "guarantee"}}
	known := func(format string, v float64) string {
		if v == 0 {
			return "–"
		}
		return fmt.Sprintf(format, v)
	}
	for _, r := range t.rows {
		if r.missing != "" {
			out = append(out, []string{r.name, r.missing, "", "", "", "", "", "", r.guarantee})
			continue
		}
		out = append(out, []string{
			r.name, thousands(int(r.rate + 0.5)), thousands(int(r.low+0.5)) + "–" + thousands(int(r.high+0.5)),
			known("%.2f", r.ratio), known("%.1f", r.share), known("%.1f", r.allocs), known("%.1f", r.cpu), known("%.0f", r.peak), r.guarantee,
		})
	}
	return out
}

// thousands writes a number with commas.
func thousands(n int) string {
	digits := strconv.Itoa(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
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
	fmt.Fprintf(&s, "\n%s: %s\n\n", t.c.name, t.c.describe())
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
