package main

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
	"github.com/ackpolicy/watermill-ackpolicy/internal/brokertest"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	testkit.Check(t, err)
	return string(text)
}

// Go installs no command whose module has a replacement.
func TestInstallable(t *testing.T) {
	if strings.Contains(read(t, "go.mod"), "replace") {
		t.Error("go.mod has a replacement: it belongs into go.work")
	}
}

var (
	quoted = regexp.MustCompile("ackpolicy (?:[a-z]+ )?[a-z]+ --[^`\n]*")
	flags  = regexp.MustCompile(`--([a-z][a-z-]*)`)
)

// The pages on the command name flags that there are, and examples have those of their command.
func TestDocsNameFlags(t *testing.T) {
	env := cli.NewEnv(func(string) string { return "" }, strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})
	root := env.Root(commands...)
	root.InitDefaultVersionFlag()
	known := []string{"help", "version"}
	var all func(*cobra.Command)
	all = func(c *cobra.Command) {
		for _, m := range flags.FindAllStringSubmatch(c.LocalFlags().FlagUsages(), -1) {
			known = append(known, m[1])
		}
		for _, sub := range c.Commands() {
			all(sub)
		}
	}
	all(root)
	examples := 0
	for _, page := range []string{"command.md", "dead-letters.md", "operations.md"} {
		for line := range strings.Lines(read(t, "../../docs/"+page)) {
			if page != "operations.md" && !strings.Contains(line, ".sh ") {
				for _, m := range flags.FindAllStringSubmatch(line, -1) {
					if !slices.Contains(known, m[1]) {
						t.Errorf("%s: no command has --%s", page, m[1])
					}
				}
			}
			for _, example := range quoted.FindAllString(line, -1) {
				c, _, err := root.Find(strings.Fields(example)[1:])
				if err != nil {
					t.Errorf("%s: %s: %v", page, example, err)
					continue
				}
				examples++
				c.InitDefaultHelpFlag()
				for _, m := range flags.FindAllStringSubmatch(example, -1) {
					if c.Flag(m[1]) == nil {
						t.Errorf("%s: %s: there is no --%s", page, example, m[1])
					}
				}
			}
		}
	}
	if examples < 10 {
		t.Errorf("%d examples found", examples)
	}
}

// A shell completes commands, flags, their values, and the names of topics and groups.
func TestCompletion(t *testing.T) {
	broker := testkit.Shared
	topic, group := brokertest.Topic(t), brokertest.Group(t)
	testkit.Check(t, brokertest.CreateTopic(broker.Addrs(), topic, 1))
	testkit.Check(t, brokertest.ResetOffset(broker.Addrs(), group, topic, 0, 0))
	for want, args := range map[string][]string{
		"status":        {"st"},
		"reopen":        {"letters", ""},
		"--first-run":   {"letters", "send", "--f"},
		"scram-sha-256": {"show", "--sasl", ""},
		"original":      {"letters", "send", "--timestamp", ""},
		topic:           {"show", "--topic", ""},
		group:           {"skip", "--group", ""},
	} {
		var out, errs bytes.Buffer
		env := cli.NewEnv(func(string) string { return strings.Join(broker.Addrs(), ",") }, strings.NewReader(""), &out, &errs)
		code := env.Run(t.Context(), append([]string{"__complete"}, args...), commands...)
		if code != cli.Done || !strings.Contains("\n"+out.String(), "\n"+want) {
			t.Errorf("%q: exit status %d, %s%s", args, code, out.String(), errs.String())
		}
	}
}
