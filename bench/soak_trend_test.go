package main

import (
	"math/rand/v2"
	"testing"
)

func TestTrend(t *testing.T) {
	const n, slack = 100, 10
	random := rand.New(rand.NewPCG(1, 1))
	noise := func(by float64) float64 { return (random.Float64() - 0.5) * by }
	for _, c := range []struct {
		name  string
		n     int
		at    func(i int) float64
		rises bool
		short bool
	}{
		{"level", n, func(int) float64 { return 100 }, false, false},
		{"level with noise", n, func(int) float64 { return 100 + noise(20) }, false, false},
		{"falling", n, func(i int) float64 { return 1000 - 5*float64(i) }, false, false},
		{"warming up in the first half", n, func(i int) float64 { return min(float64(i)*20, 1000) }, false, false},
		{"a saw: garbage between collections", n, func(i int) float64 { return 100 + float64(i%7)*8 }, false, false},
		{"outliers", n, func(i int) float64 {
			if i > 80 && i%5 == 0 {
				return 5000
			}
			return 100
		}, false, false},
		{"rising by less than the slack", n, func(i int) float64 { return 50 + float64(i)*0.15 }, false, false},
		{"rising by less than a tenth", n, func(i int) float64 { return 1000 + float64(i)*1.5 }, false, false},
		{"a leak", n, func(i int) float64 { return 50 + float64(i)*0.5 }, true, false},
		{"a leak in noise", n, func(i int) float64 { return 50 + float64(i) + noise(40) }, true, false},
		{"a leak on a high level", n, func(i int) float64 { return 1000 + float64(i)*4 }, true, false},
		{"a leak in steps", n, func(i int) float64 { return 50 + float64(i/10)*10 }, true, false},
		{"a long leak", 10_000, func(i int) float64 { return 50 + float64(i)*0.01 }, true, false},
		{"a short leak", 2*trendSamples - 2, func(i int) float64 { return float64(i) * 100 }, false, true},
		{"no sample", 0, nil, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var samples []float64
			for i := range c.n {
				samples = append(samples, c.at(i))
			}
			got := newTrend(samples, slack)
			if got.rises() != c.rises || got.short != c.short {
				t.Errorf("rises %v, short %v: %s", got.rises(), got.short, got.text(1, ""))
			}
		})
	}
}

func TestSeriesRisesWithAnyOfItsThree(t *testing.T) {
	const leak = 64 << 20
	for name, c := range map[string]struct {
		heap, resident, goroutines float64 // more at the end
		rises                      bool
	}{
		"level": {}, "heap": {heap: leak, rises: true}, "resident": {resident: leak, rises: true}, "goroutines": {goroutines: 1000, rises: true},
	} {
		var s memorySeries
		for i := range 100 {
			part := float64(i) / 99
			s.add(10<<20+c.heap*part, 30<<20+c.resident*part, 100+c.goroutines*part)
		}
		if s.rises() != c.rises {
			t.Errorf("%s: %s", name, s.text())
		}
	}
}
