package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// write writes the tables as Markdown, and a chart beside them.
func (b *bench) write(file string) error {
	chart := strings.TrimSuffix(file, ".md") + ".svg"
	if err := os.WriteFile(file, []byte(b.markdown(filepath.Base(chart))), 0o644); err != nil {
		return err
	}
	return os.WriteFile(chart, []byte(chartOf(b.tables)), 0o644)
}

func (b *bench) markdown(chart string) string {
	var s strings.Builder
	fmt.Fprintf(&s, `# Benchmarks

%s, %d cores shared with the broker. %s.

Each consumer ran %s in a separate process, in turn on one broker, to its last record or for %s. A rate is the median, with the lowest and the highest beside it, from the first record to the last.
*× stock* is the rate beside watermill-kafka's, *%% of limit* beside the same handler fed from memory; *CPU s/M* are processor seconds per million records, *allocs* allocations per record (Go only), *peak* the process's largest resident size.
`, time.Now().Format("2 January 2006"), runtime.NumCPU(), strings.Join(b.versions(), ", "), times(b.runs), plain(b.limit))
	if b.uses(java) {
		fmt.Fprintf(&s, "Those on the JVM were warm: %s of the same work came before, in the same process.\n", plain(b.warm))
	}
	s.WriteString("What the consumers are set to, and how to run this: [bench/README.md](../bench/README.md).\n\n")
	fmt.Fprintf(&s, "![rates by case](%s)\n", chart)
	for _, t := range b.tables {
		fmt.Fprintf(&s, "\n## %s\n\n%s.\n\n%s\n", t.c.name, t.c.describe(), columns(t.lines()).RenderMarkdown())
	}
	for _, sec := range b.sections {
		s.WriteString(sec.markdown())
	}
	return s.String()
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// uses reports whether the tables have figures of a language's peers.
func (b *bench) uses(l *language) bool {
	return slices.ContainsFunc(b.tables, func(t table) bool {
		return slices.ContainsFunc(t.rows, func(r row) bool {
			c, err := find(r.name)
			return err == nil && c.peer == l && r.missing == ""
		})
	})
}

// versions are those of all that took part, as far as they are known.
func (b *bench) versions() []string {
	out := []string{broker(), strings.Replace(runtime.Version(), "go", "Go ", 1)}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch name := m.Path[strings.Index(m.Path, "/")+1:]; name {
			case "ThreeDotsLabs/watermill", "ThreeDotsLabs/watermill-kafka/v3", "IBM/sarama", "twmb/franz-go":
				name = strings.TrimSuffix(name[strings.Index(name, "/")+1:], "/v3")
				out = append(out, name+" "+strings.TrimPrefix(m.Version, "v"))
			}
		}
	}
	for _, l := range []*language{java, python} {
		if !b.uses(l) {
			continue
		}
		dir, err := l.ready()
		if err != nil {
			continue
		}
		out = append(out, l.versions(dir)...)
	}
	return out
}

// broker is the broker's version if scripts/kafka.sh names it.
func broker() string {
	version, err := os.ReadFile(filepath.Join(os.Getenv("ACKPOLICY_KAFKA_STATE"), "version"))
	if err != nil {
		return "Kafka of unknown version"
	}
	return "Kafka " + strings.TrimSpace(string(version))
}
