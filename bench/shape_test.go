package main

import (
	"slices"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func parse(t *testing.T, args ...string) ([]bcase, error) {
	t.Helper()
	var set pflag.FlagSet
	names := set.String("case", "noop,1ms", "")
	all := set.Bool("all", false, "")
	shape := custom
	shape.flags(&set)
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	return chosen(&set, *names, *all)
}

func TestChosenCases(t *testing.T) {
	names := func(cs []bcase) (out []string) {
		for _, c := range cs {
			out = append(out, c.name)
		}
		return out
	}
	for _, c := range []struct {
		args []string
		want []string
	}{
		{nil, []string{"noop", "1ms"}},
		{[]string{"--case", "zipf"}, []string{"zipf"}},
		{[]string{"--case", "zipf", "--records", "10"}, []string{"zipf"}},
		{[]string{"--records", "10"}, []string{"custom"}},
		{[]string{"--all"}, names(cases)},
	} {
		got, err := parse(t, c.args...)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(names(got), c.want) {
			t.Errorf("%v chooses %v, want %v", c.args, names(got), c.want)
		}
	}
}

func TestFlagsChangeOnlyWhatTheySay(t *testing.T) {
	got, err := parse(t, "--case", "zipf", "--work", "3ms", "--records", "10")
	if err != nil {
		t.Fatal(err)
	}
	zipf, _ := findCase("zipf")
	if zipf.work != time.Millisecond {
		t.Error("the case itself was changed")
	}
	zipf.work, zipf.records = 3*time.Millisecond, 10
	if got[0].describe() != zipf.describe() {
		t.Errorf("got  %s\nwant %s", got[0].describe(), zipf.describe())
	}
}

func TestRefusedCommandLines(t *testing.T) {
	for _, args := range [][]string{
		{"--case", "nosuch"}, {"--case", "noop", "--all"}, {"--records", "0"}, {"--zipf", "1"}, {"--keys", "1", "--zipf", "2"}, {"--work", "-1s"},
	} {
		if got, err := parse(t, args...); err == nil {
			t.Errorf("%v gives %v", args, got)
		}
	}
}

func TestCasesNameConsumersThatExist(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range append(slices.Clone(cases), custom) {
		if seen[c.name] {
			t.Errorf("two cases are named %s", c.name)
		}
		seen[c.name] = true
		if err := c.check(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		for _, name := range c.consumers {
			if _, err := find(name); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		for _, name := range []string{c.baseline, c.limit} {
			if name != "" && !slices.Contains(c.consumers, name) {
				t.Errorf("%s compares with %s, which does not take part", c.name, name)
			}
		}
	}
}

func TestKeys(t *testing.T) {
	count := func(c bcase) []int {
		counts := make([]int, c.keys)
		key := c.key()
		for i := range int64(10_000) {
			counts[key(i)]++
		}
		return counts
	}
	even := count(bcase{keys: 100})
	if slices.Min(even) != 100 || slices.Max(even) != 100 {
		t.Errorf("without Zipf's law each key is as often: %v", even)
	}
	zipf := count(bcase{keys: 100, zipf: 1.5})
	if zipf[0] < 2*zipf[1] || zipf[1] < zipf[9] {
		t.Errorf("by Zipf's law the first keys are the most frequent: %v", zipf)
	}
	if !slices.Equal(zipf, count(bcase{keys: 100, zipf: 1.5})) {
		t.Error("another bench has other keys")
	}
}
