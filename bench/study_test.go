package main

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestPairedSwapsTheOrder(t *testing.T) {
	var order string
	run := func(name string, result int) func() (int, error) {
		return func() (int, error) { order += name; return result, nil }
	}
	as, bs, err := paired(3, run("a", 1), run("b", 2))
	if err != nil {
		t.Fatal(err)
	}
	if order != "abbaab" || !slices.Equal(as, []int{1, 1, 1}) || !slices.Equal(bs, []int{2, 2, 2}) {
		t.Errorf("%s ran, with %v and %v", order, as, bs)
	}
	broken := errors.New("broken")
	if _, _, err := paired(1, run("a", 1), func() (int, error) { return 0, broken }); err != broken {
		t.Errorf("got %v", err)
	}
}

func TestRatiosAreOfPairs(t *testing.T) {
	// A machine that slows down from run to run hides nothing of the ratio.
	if got := middle(ratios([]float64{100, 50, 25}, []float64{80, 40, 20})); got != 1.25 {
		t.Errorf("got %v", got)
	}
}

func TestSpread(t *testing.T) {
	if got := spread([]float64{3, 1, 2, 10}, "%.1f"); got != "2.5 (1.0–10.0)" {
		t.Errorf("got %s", got)
	}
}

func TestSectionNamesEachGoal(t *testing.T) {
	s := section{name: "x", about: "About it", lines: [][]string{{"what", "a", "b"}, {"row", "1", "2"}}}
	s.want(true, "%d is enough", 1)
	s.want(false, "%d is too little", 2)
	const want = "\n## x\n\nAbout it.\n\n| what | a | b |\n| --- | ---:| ---:|\n| row | 1 | 2 |\n" +
		"\nGoal, kept: 1 is enough.\n\nGoal, **missed**: 2 is too little.\n"
	if got := s.markdown(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestExperimentsAreWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range experiments() {
		if seen[e.name] || e.prepare == nil || strings.TrimSpace(e.about) == "" {
			t.Errorf("experiment %q is there twice, or not whole", e.name)
		}
		seen[e.name] = true
		e.prepare(pflag.NewFlagSet(e.name, pflag.PanicOnError)) // panics if two flags have one name
	}
}
