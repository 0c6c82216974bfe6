package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// study is an experiment whose table is published with the cases'.
type study interface {
	flags(*pflag.FlagSet)
	measure(b *bench) (section, error)
}

// section is a study's part of the published figures.
type section struct {
	name, about string
	lines       [][]string // the first one is the heading
	goals       []goal
}

type goal struct {
	text string
	kept bool
}

// want notes a goal with the figure that was reached.
func (s *section) want(kept bool, format string, args ...any) {
	s.goals = append(s.goals, goal{fmt.Sprintf(format, args...), kept})
}

// print prints the table, and which goals are kept.
func (s section) print() (v verdict) {
	fmt.Printf("\n%s: %s\n\n%s\n\n", s.name, s.about, columns(s.lines).Render())
	for _, g := range s.goals {
		v.want(g.kept, "%s", g.text)
	}
	return v
}

func (s section) markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, "\n## %s\n\n%s.\n\n%s\n", s.name, s.about, columns(s.lines).RenderMarkdown())
	for _, g := range s.goals {
		kept := "kept"
		if !g.kept {
			kept = "**missed**"
		}
		fmt.Fprintf(&text, "\nGoal, %s: %s.\n", kept, g.text)
	}
	return text.String()
}

// studied is the experiment that runs a study.
func studied(name, about string, of func() study, child func([]byte) (any, error)) experiment {
	return experiment{name: name, about: about, child: child, study: of, prepare: func(flags *pflag.FlagSet) func() error {
		s, b, out := of(), &bench{timeout: 2 * time.Minute, limit: 4 * time.Second}, ""
		flags.IntVar(&b.runs, "runs", 3, "runs of each consumer")
		flags.StringVar(&b.profile, "profile", "", "write a CPU profile of each consumer's last run to this `folder`, where the experiment can")
		flags.StringVarP(&out, "output", "o", "", "write the table as Markdown to this `file`")
		s.flags(flags)
		return func() error { return b.study(s, out) }
	}}
}

// study runs a study and prints it. A goal that is missed is an error.
func (b *bench) study(s study, out string) (err error) {
	if b.runs < 1 {
		return fmt.Errorf("--runs is %d: at least 1 is needed", b.runs)
	}
	if b.brokers, err = brokersFromEnv(); err != nil {
		return err
	}
	sec, err := s.measure(b)
	if err != nil {
		return err
	}
	v := sec.print()
	if out != "" {
		if err := os.WriteFile(out, []byte(sec.markdown()), 0o644); err != nil {
			return err
		}
	}
	return v.err()
}

// apart takes a study out of those that are published together: it takes too long.
func apart(e experiment) experiment {
	e.study = nil
	return e
}

// studies runs all of them as they are without flags. A goal that is missed is
// printed, and does not end the rest.
func (b *bench) studies() error {
	for _, e := range experiments() {
		if e.study == nil {
			continue
		}
		sec, err := e.study().measure(b)
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		sec.print()
		b.sections = append(b.sections, sec)
	}
	return nil
}

// group names a consumer group that no other run has.
func group(study, consumer string) string {
	return fmt.Sprintf("bench-%s-%s-%d", study, strings.ReplaceAll(consumer, " ", "-"), time.Now().UnixNano())
}

// paired runs a and b in turn, n times each, and swaps them from pair to pair, so
// that a drift of the machine hits both alike.
func paired[R any](n int, a, b func() (R, error)) (as, bs []R, err error) {
	for i := range n {
		first, second := a, b
		if i%2 == 1 {
			first, second = b, a
		}
		x, err := first()
		if err != nil {
			return nil, nil, err
		}
		y, err := second()
		if err != nil {
			return nil, nil, err
		}
		if i%2 == 1 {
			x, y = y, x
		}
		as, bs = append(as, x), append(bs, y)
	}
	return as, bs, nil
}

// ratios are those of each pair.
func ratios(over, under []float64) []float64 {
	out := make([]float64, len(over))
	for i := range over {
		out[i] = over[i] / under[i]
	}
	return out
}

// figures picks one figure of each result.
func figures[R any](results []R, of func(R) float64) []float64 {
	out := make([]float64, len(results))
	for i, r := range results {
		out[i] = of(r)
	}
	return out
}
