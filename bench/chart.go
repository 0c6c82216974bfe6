package main

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
)

// chartOf draws one group of bars per case, the fastest first. A bar's length is the
// rate beside the best of its case that read from Kafka; the limit has no bar.
func chartOf(tables []table) string {
	const left, width, line, total = 190, 360, 20, 960
	var s strings.Builder
	y := 26
	for _, t := range tables {
		var rows []row
		best, limit := 0.0, 0.0
		for _, r := range t.rows {
			switch {
			case r.missing != "":
			case r.name == t.c.limit:
				limit = r.rate
			default:
				rows = append(rows, r)
				best = max(best, r.rate)
			}
		}
		slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(b.rate, a.rate) })
		about, _, _ := strings.Cut(t.c.describe(), ";")
		fmt.Fprintf(&s, `<text x="16" y="%d" font-weight="bold">%s</text>`, y, escape(t.c.name+": "+about))
		if limit > 0 {
			fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end" class="small">limit, fed from memory: %s/s</text>`,
				total-16, y, thousands(int(limit+0.5)))
		}
		s.WriteString("\n")
		y += 10
		for _, r := range rows {
			class := "peer"
			switch {
			case strings.HasPrefix(r.name, "ackpolicy"):
				class = "ours"
			case r.name == t.c.baseline:
				class = "stock"
			}
			long := max(1, int(width*r.rate/best))
			text := y + line - 6
			fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-8, text, escape(r.name))
			fmt.Fprintf(&s, `<rect x="%d" y="%d" width="%d" height="%d" class="%s"/>`, left, y, long, line-4, class)
			fmt.Fprintf(&s, `<text x="%d" y="%d">%s/s <tspan class="small">%s</tspan></text>`+"\n",
				left+long+6, text, thousands(int(r.rate+0.5)), escape(r.guarantee))
			y += line
		}
		y += 26
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12">
<style>.small{font-size:11px;fill:#59636e} .ours{fill:#2b8a3e} .stock{fill:#57606a} .peer{fill:#afb8c1}</style>
<rect width="100%%" height="100%%" fill="white"/>
%s</svg>
`, total, y, s.String())
}

func escape(text string) string {
	var s strings.Builder
	_ = xml.EscapeText(&s, []byte(text))
	return s.String()
}
