package main

import (
	"os"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
)

func TestService(t *testing.T) {
	if err := run(watermill.NopLogger{}); err != nil {
		t.Fatal(err)
	}
}

// Each block of Go in the README is code that compiles here or among the root's examples.
func TestREADMEShowsCodeThatCompiles(t *testing.T) {
	var sources string
	for _, name := range []string{"service.go", "../../example_test.go", "../../example_applications_test.go"} {
		sources += flat(t, name)
	}
	blocks := strings.Split(flat(t, "../../README.md"), "\n```go\n")[1:]
	if len(blocks) == 0 {
		t.Fatal("the README shows no Go")
	}
	for _, block := range blocks {
		if code, _, _ := strings.Cut(block, "\n```"); !strings.Contains(sources, code) {
			t.Errorf("neither in service.go nor among the root's examples:\n%s", code)
		}
	}
}

// flat returns a file's text without its indentation.
func flat(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return "\n" + strings.Join(lines, "\n")
}
