package applications_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var update = flag.Bool("update", false, "write the diffs of docs/cqrs.md")

// In each application one line is another one after the move, beside the imports, and docs/cqrs.md shows it.
func TestOneLine(t *testing.T) {
	t.Chdir("../..")
	var diffs []string                     // different ones
	found, named := 0, map[string]string{} // the applications of a diff
	for _, file := range []string{"cqrs.go", "routers.go", "components.go"} {
		old, now := bodies(t, "test/applications/before/"+file), bodies(t, "test/applications/after/"+file)
		if len(old) != len(now) {
			t.Fatalf("%s: %d applications before, %d after", file, len(old), len(now))
		}
		for i := range old {
			found++
			lines, changed := changes(old[i].lines, now[i].lines)
			if old[i].name != now[i].name || changed != 1 {
				t.Errorf("%s: %d lines changed in %s", file, changed, old[i].name)
			}
			if named[lines] == "" {
				diffs = append(diffs, lines)
				named[lines] = now[i].name
			} else {
				named[lines] += ", " + now[i].name
			}
		}
	}
	var diff strings.Builder
	for _, lines := range diffs {
		fmt.Fprintf(&diff, "@@ %s @@\n%s", named[lines], lines)
	}
	if found != len(applications) {
		t.Errorf("%d applications found, %d are tested", found, len(applications))
	}
	const page, before, after = "docs/cqrs.md", "<!-- the diff -->\n```diff\n", "```\n"
	text, err := os.ReadFile(page)
	testkit.Check(t, err)
	head, rest, _ := strings.Cut(string(text), before)
	shown, tail, ok := strings.Cut(rest, after)
	switch {
	case !ok:
		t.Fatalf("%s has no diff", page)
	case *update:
		testkit.Check(t, os.WriteFile(page, []byte(head+before+diff.String()+after+tail), 0o644))
	case shown != diff.String():
		t.Errorf("%s shows\n%s\nbut the diff is\n%s", page, shown, diff.String())
	}
}

type body struct {
	name  string
	lines []string
}

// bodies returns the functions of a file.
func bodies(t *testing.T, file string) (all []body) {
	source, err := os.ReadFile(file)
	testkit.Check(t, err)
	function := regexp.MustCompile(`(?m)^func (\w+)\([^\n]*\n((?:\t[^\n]*\n|\n)*)\}`)
	for _, found := range function.FindAllStringSubmatch(string(source), -1) {
		all = append(all, body{found[1], strings.Split(found[2], "\n")})
	}
	return all
}

// changes returns the lines that differ between two functions of equal length, and how many they are.
func changes(old, now []string) (lines string, n int) {
	if len(old) != len(now) {
		return "", len(now) - len(old)
	}
	for i := range old {
		if old[i] != now[i] {
			lines += fmt.Sprintf("-    %s\n+    %s\n", strings.TrimSpace(old[i]), strings.TrimSpace(now[i]))
			n++
		}
	}
	return lines, n
}
