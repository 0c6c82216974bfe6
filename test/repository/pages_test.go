package repository_test

import (
	"os"
	"strings"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// The code on these pages is that of the examples, and of what the tests run.
func TestPageShowsExamples(t *testing.T) {
	t.Chdir("../..")
	for page, files := range map[string][]string{
		"docs/middlewares.md": {"example_applications_test.go", "test/middlewares/all_together_test.go"},
		"docs/operations.md":  {"example_applications_test.go"},
		"docs/cqrs.md":        {"examples/cqrs/shop.go"},
		"docs/testing.md":     {"examples/testing/shop_test.go", "ackpolicytest/conformance_test.go"},
	} {
		var code string
		for _, file := range files {
			code += unindented(t, file)
		}
		blocks := strings.Split(unindented(t, page), "```go\n")[1:]
		for _, block := range blocks {
			block, _, _ := strings.Cut(block, "```")
			if !strings.Contains(code, block) {
				t.Errorf("%s: not in %v:\n%s", page, files, block)
			}
		}
		if len(blocks) == 0 {
			t.Errorf("no code on %s", page)
		}
	}
}

// Tests in other packages run copies of the examples' code.
func TestCopiesOfExamples(t *testing.T) {
	t.Chdir("../..")
	for copied, example := range map[string]string{
		"test/middlewares/example_code_test.go": "example_applications_test.go",
		"test/subscriber/example_code_test.go":  "example_applications_test.go",
	} {
		_, code, _ := strings.Cut(unindented(t, copied), "\n)\n")
		for block := range strings.SplitSeq(code, "\n\n") {
			if !strings.Contains(unindented(t, example), strings.TrimSpace(block)) {
				t.Errorf("%s: not in %s:\n%s", copied, example, block)
			}
		}
	}
}

// unindented returns a file's text without what its lines begin and end with.
func unindented(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	testkit.Check(t, err)
	lines := strings.Split(string(text), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "\n")
}
