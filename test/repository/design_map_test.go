package repository_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var (
	code       = regexp.MustCompile("`([^`]+)`")
	fileName   = regexp.MustCompile(`^[a-z_/*]+\.go$|^(internal|cmd|test|docs|examples)/[a-z_/-]+$|^ackpolicy(cqrs|otel|prom|test|web)$`)
	identifier = regexp.MustCompile(`^[A-Za-z]+(\.[A-Za-z]+)?$`)
	// "`take`, `Claim.run` and `close` in `intake.go`": these names are in that file.
	namesIn = regexp.MustCompile("((?:`[A-Za-z.]+`(?:, | and | or ))*`[A-Za-z.]+`) in (`[a-z_/*]+\\.go`|`internal/[a-z_/-]+`)")
)

// The map at the top of docs/design.md names files and packages that exist, and only what these
// declare: "`name` in `file.go`", or "`file.go`: `name`".
func TestDesignMap(t *testing.T) {
	t.Chdir("../..")
	page, err := os.ReadFile("docs/design.md")
	testkit.Check(t, err)
	files, names := 0, 0
	check := func(name, in string) {
		t.Helper()
		names++
		found, _ := filepath.Glob(in)
		for _, file := range found {
			if declared(t, file)[name] {
				return
			}
		}
		t.Errorf("%q does not declare %s", in, name)
	}
	beforeWords, _, _ := strings.Cut(string(page), "\n## Words")
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 {
			continue
		}
		for _, c := range code.FindAllStringSubmatch(cells[1]+cells[2], -1) {
			if fileName.MatchString(c[1]) {
				files++
				if found, err := filepath.Glob(c[1]); err != nil || len(found) == 0 {
					t.Errorf("no such file or package: %s", c[1])
				}
			}
		}
		if !strings.Contains(beforeWords, line) {
			continue
		}
		where := namesIn.ReplaceAllStringFunc(cells[2], func(part string) string {
			m := namesIn.FindStringSubmatch(part)
			for _, name := range code.FindAllStringSubmatch(m[1], -1) {
				check(name[1], strings.Trim(m[2], "`"))
			}
			return m[2]
		})
		last := ""
		for _, c := range code.FindAllStringSubmatch(where, -1) {
			if name := c[1]; fileName.MatchString(name) {
				last = name
			} else if identifier.MatchString(name) {
				check(name, last)
			}
		}
	}
	if files < 50 || names < 30 {
		t.Errorf("only %d files and %d names found", files, names)
	}
}

// What a page calls `Type.Name` or `file.go` exists. Pages for users name public types; others with
// such names are sarama's.
func TestPagesNameWhatExists(t *testing.T) {
	t.Chdir("../..")
	pages, err := filepath.Glob("docs/*.md")
	testkit.Check(t, err)
	members, public, internal := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, file := range sources(t) {
		types := internal
		if regexp.MustCompile(`^(ackpolicy[a-z]+/)?[a-z_]+\.go$`).MatchString(file) {
			types = public
		}
		for name := range declared(t, file) {
			members[name] = true
			if of, _, is := strings.Cut(name, "."); is {
				types[of] = true
			}
		}
	}
	for _, page := range append(pages, "README.md", "CONTRIBUTING.md", "SECURITY.md") {
		text, err := os.ReadFile(page)
		testkit.Check(t, err)
		for _, c := range code.FindAllStringSubmatch(string(text), -1) {
			name := strings.TrimSuffix(c[1], "()")
			of, _, _ := strings.Cut(name, ".")
			switch {
			case strings.HasSuffix(name, ".go"):
				if found, err := filepath.Glob(name); err != nil || len(found) == 0 {
					t.Errorf("%s: no file %s", page, name)
				}
			case regexp.MustCompile(`^[A-Za-z]+\.[A-Za-z]+$`).MatchString(name):
				if (public[of] || internal[of] && page == "docs/design.md") && !members[name] {
					t.Errorf("%s: no %s", page, name)
				}
			}
		}
	}
}
