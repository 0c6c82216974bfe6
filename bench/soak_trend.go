package main

import (
	"fmt"
	"slices"
)

// memorySeries is what a process was seen to hold, at equal intervals.
type memorySeries struct{ heap, resident, goroutines []float64 }

func (s *memorySeries) add(heap, resident, goroutines float64) {
	s.heap = append(s.heap, heap)
	s.resident = append(s.resident, resident)
	s.goroutines = append(s.goroutines, goroutines)
}

// What a series may rise by, at least: a heap that settles, pages that the runtime
// has not given back, handlers that happen to run.
const heapSlack, residentSlack, goroutineSlack = 4 << 20, 16 << 20, 30

func (s memorySeries) trends() (heap, resident, goroutines trend) {
	return newTrend(s.heap, heapSlack), newTrend(s.resident, residentSlack), newTrend(s.goroutines, goroutineSlack)
}

func (s memorySeries) short() bool {
	heap, _, _ := s.trends()
	return heap.short
}

func (s memorySeries) rises() bool {
	heap, resident, goroutines := s.trends()
	return heap.rises() || resident.rises() || goroutines.rises()
}

func (s memorySeries) text() string {
	heap, resident, goroutines := s.trends()
	return fmt.Sprintf("second half of %d samples: heap %s; resident %s; goroutines %s", len(s.heap),
		heap.text(1<<20, "MiB"), resident.text(1<<20, "MiB"), goroutines.text(1, ""))
}

// trend reports whether a series that was sampled at equal intervals rises.
type trend struct {
	from, to float64 // the line through the second half, at its ends
	limit    float64 // what it may rise by
	short    bool    // too few samples to judge
}

const trendSamples = 12 // in the second half, at least

// newTrend looks at the second half, since the first one warms up. Its line is
// Theil and Sen's: the median of the slopes between all pairs of samples, which
// single outliers do not move. The series rises if that line does, from one end of
// the half to the other, by more than a tenth of the half's median and by more than slack.
func newTrend(samples []float64, slack float64) trend {
	half := samples[len(samples)/2:]
	if len(half) < trendSamples {
		return trend{short: true}
	}
	if len(half) > 1000 { // 500,000 pairs are enough
		half = thin(half, len(half)/500)
	}
	var slopes []float64
	for i := range half {
		for k := i + 1; k < len(half); k++ {
			slopes = append(slopes, (half[k]-half[i])/float64(k-i))
		}
	}
	slices.Sort(slopes)
	slope, level := middle(slopes), middle(half)
	reach := slope * float64(len(half)-1) / 2
	return trend{from: level - reach, to: level + reach, limit: max(slack, level/10)}
}

func thin(samples []float64, step int) (out []float64) {
	for i := 0; i < len(samples); i += step {
		out = append(out, samples[i])
	}
	return out
}

func (t trend) rises() bool { return !t.short && t.to-t.from > t.limit }

func (t trend) text(unit float64, name string) string {
	if t.short {
		return "too short to judge"
	}
	word := "level"
	if t.rises() {
		word = "RISING"
	}
	return fmt.Sprintf("%s, %.1f → %.1f %s (may rise by %.1f)", word, t.from/unit, t.to/unit, name, t.limit/unit)
}
