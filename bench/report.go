package main

import (
	"fmt"
	"slices"

	"github.com/dustin/go-humanize"
	pretty "github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
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

func median(rs []result, of func(result) float64) float64 { return middle(figures(rs, of)) }

// newTable has a row for each consumer. One that is no key of the results is not
// there; one that is, without a result, failed in every run.
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
		consumer, _ := find(w)
		r := row{name: w, guarantee: consumer.guarantee}
		switch rs, able := results[w]; {
		case !able:
			r.missing = "not there"
		case len(rs) == 0:
			r.missing = "failed"
		default:
			r.rate = median(rs, rate)
			rates := figures(rs, rate)
			r.low, r.high = slices.Min(rates), slices.Max(rates)
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
	out := [][]string{{"consumer", "records/s", "min–max", "× stock", "% of limit", "allocs", "CPU s/M", "peak MiB", guarantee}}
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
func thousands(n int) string { return humanize.Comma(int64(n)) }

// columns is a table of lines, the first of which is the heading. Columns of text stand at the
// left: the first one, and guarantees.
func columns(lines [][]string) pretty.Writer {
	w := pretty.NewWriter()
	style := pretty.StyleDefault
	style.Options, style.Format.Header = pretty.OptionsNoBordersAndSeparators, text.FormatDefault
	w.SetStyle(style)
	var configs []pretty.ColumnConfig
	for i, heading := range lines[0] {
		if i > 0 && heading != guarantee {
			configs = append(configs, pretty.ColumnConfig{Number: i + 1, Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
	}
	w.SetColumnConfigs(configs)
	for i, l := range lines {
		row := make(pretty.Row, len(l))
		for j, cell := range l {
			row[j] = cell
		}
		if i == 0 {
			w.AppendHeader(row)
		} else {
			w.AppendRow(row)
		}
	}
	return w
}

const guarantee = "guarantee"

func (t table) text() string {
	return fmt.Sprintf("\n%s: %s\n\n%s\n", t.c.name, t.c.describe(), columns(t.lines()).Render())
}
