package repository_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// The map at the top of docs/design.md names files, packages and functions that exist.
func TestDesignMap(t *testing.T) {
	t.Chdir("../..")
	page, err := os.ReadFile("docs/design.md")
	testkit.Check(t, err)
	code := regexp.MustCompile("`[^`]+`")
	named := 0
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 {
			continue
		}
		var functions []string
		for _, c := range code.FindAllString(cells[1]+cells[2], -1) {
			name := strings.Trim(c, "`")
			switch {
			case regexp.MustCompile(`^[a-z_/*]+\.go$|^(internal|cmd|test|docs|examples)/[a-z_/-]+$`).MatchString(name):
				named++
				files, err := filepath.Glob(name)
				if err != nil || len(files) == 0 {
					t.Errorf("no such file or package: %s", name)
				}
				for _, function := range functions {
					if !declares(t, files, function) {
						t.Errorf("%s does not declare %s", name, function)
					}
				}
				functions = nil
			case strings.Contains(cells[2], c) && regexp.MustCompile(`^[A-Za-z]+(\.[A-Za-z]+)?$`).MatchString(name) &&
				strings.Contains(cells[2], c+" in `") || strings.Contains(cells[2], c+" and `"):
				functions = append(functions, name)
			}
		}
	}
	if named < 50 {
		t.Errorf("only %d files and packages found", named)
	}
}

// declares reports whether one of the files has the function, or the method as Type.Method.
func declares(t *testing.T, files []string, function string) bool {
	t.Helper()
	pattern := `(?m)^func ` + function + `\(`
	if of, method, ok := strings.Cut(function, "."); ok {
		pattern = `(?m)^func \([a-z]+ \*?` + of + `(\[[A-Z, ]+\])?\) ` + method + `\(`
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err == nil && regexp.MustCompile(pattern).Match(source) {
			return true
		}
	}
	return false
}
