package ackpolicyweb

import (
	"cmp"
	"fmt"
	"strings"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// The kinds of records that a window is drawn of, from the bottom up: their class in page.css.
const (
	drawnPassed  = iota // settled, below the watermark, not committed yet
	drawnSettled        // settled, above the watermark
	drawnQueued
	drawnInFlight
	drawnPending
	drawnNacked
	drawnLetter
	drawnKinds
)

var drawnClasses = [drawnKinds]string{"passed", "settled", "queued", "flight", "pending", "nacked", "letter"}

// strip is a drawing of a window: columns of records from one offset to another, each piled up by kind.
type strip struct {
	Columns, Height int
	Paths           []stripPath
	Label           string
}

type stripPath struct{ Class, D string }

func kindOf(s ackpolicy.RecordStatus) int {
	switch s {
	case ackpolicy.RecordInFlight, ackpolicy.RecordNacking, ackpolicy.RecordConfirming, ackpolicy.RecordSettled:
		return drawnInFlight
	case ackpolicy.RecordPending:
		return drawnPending
	case ackpolicy.RecordParked, ackpolicy.RecordDue:
		return drawnNacked
	case ackpolicy.RecordRejecting:
		return drawnLetter
	}
	return drawnQueued
}

// from returns the first offset that is drawn of a partition.
func from(p *ackpolicy.PartitionState) int64 {
	if p.Committed >= 0 && p.Committed < p.Watermark {
		return p.Committed
	}
	return p.Watermark
}

// draw draws the window of a partition, in at most so many columns.
func draw(p *ackpolicy.PartitionState, w *window, most, height int) strip {
	lo, hi := from(p), p.Next
	if hi <= lo {
		return strip{Columns: most, Height: height}
	}
	per := (hi - lo + int64(most) - 1) / int64(most) // offsets in a column
	n := int((hi - lo + per - 1) / per)
	piles := make([][drawnKinds]float64, n)
	column := func(offset int64) int { return int(min(max(offset-lo, 0)/per, int64(n-1))) }
	for i := range piles {
		first := lo + int64(i)*per
		end := min(first+per, hi)
		passed := max(0, min(end, p.Watermark)-first)
		piles[i][drawnPassed] = float64(passed)
		piles[i][drawnSettled] = float64(end - first - passed)
	}
	move := func(i, kind int, records float64) {
		piles[i][kind] += records
		piles[i][drawnSettled] = max(0, piles[i][drawnSettled]-records)
	}
	if len(w.records) >= p.Unsettled { // all are known one by one
		for i := range w.records {
			move(column(w.records[i].Offset), kindOf(w.records[i].Status), 1)
		}
	} else {
		for _, s := range w.sections {
			spread(s, lo, per, n, move)
		}
	}
	return strip{Columns: n, Height: height, Paths: paths(piles, height)}
}

// spread divides the records of a section among the columns that it lies in.
func spread(s ackpolicy.Section, lo, per int64, n int, move func(column, kind int, records float64)) {
	of := [...]struct{ kind, records int }{
		{drawnQueued, s.Queued}, {drawnInFlight, s.InFlight}, {drawnPending, s.Pending}, {drawnNacked, s.Nacked}, {drawnLetter, s.Letters},
	}
	for at := max(s.From, lo); at < s.To; {
		i := int(min((at-lo)/per, int64(n-1)))
		end := min(s.To, lo+int64(i+1)*per)
		if i == n-1 {
			end = s.To
		}
		for _, k := range of {
			if k.records > 0 {
				move(i, k.kind, float64(k.records)*float64(end-at)/float64(s.To-s.From))
			}
		}
		at = end
	}
}

// paths draws piles as one SVG path for each kind. What there is of a kind shows, however little it is.
func paths(piles [][drawnKinds]float64, height int) (all []stripPath) {
	var d [drawnKinds]strings.Builder
	for i := 0; i < len(piles); {
		heights := pile(piles[i], height)
		width := 1
		for i+width < len(piles) && pile(piles[i+width], height) == heights {
			width++
		}
		y := height
		for k, h := range heights {
			if h > 0 {
				y -= h
				fmt.Fprintf(&d[k], "M%d %dh%dv%dh-%dz", i, y, width, h, width)
			}
		}
		i += width
	}
	for k := range d {
		if d[k].Len() > 0 {
			all = append(all, stripPath{drawnClasses[k], d[k].String()})
		}
	}
	return all
}

// pile divides a column's height.
func pile(of [drawnKinds]float64, height int) (heights [drawnKinds]int) {
	total := 0.0
	for _, n := range of {
		total += n
	}
	if total == 0 {
		return heights
	}
	least := height / 3
	used := 0
	for k, n := range of {
		if n <= 0.001 {
			continue
		}
		heights[k] = max(int(float64(height)*n/total), 1)
		if k > drawnQueued {
			heights[k] = max(heights[k], least)
		}
		used += heights[k]
	}
	for ; used != height; used -= cmp.Compare(used, height) { // the highest has what is left, and gives way
		most := 0
		for k, h := range heights {
			if h > heights[most] {
				most = k
			}
		}
		heights[most] -= cmp.Compare(used, height)
	}
	return heights
}
