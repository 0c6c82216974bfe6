package repository_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// A link between pages leads to a file and a heading that exist.
func TestLinksBetweenPages(t *testing.T) {
	t.Chdir("../..")
	var pages []string
	for _, pattern := range []string{"*.md", "*/*.md"} {
		found, err := filepath.Glob(pattern)
		testkit.Check(t, err)
		pages = append(pages, found...)
	}
	links := regexp.MustCompile(`\]\(([^()\s]+)\)`)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		testkit.Check(t, err)
		for _, link := range links.FindAllStringSubmatch(string(text), -1) {
			file, heading, _ := strings.Cut(link[1], "#")
			if strings.Contains(file, "://") {
				continue
			}
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s leads nowhere", page, link[1])
			} else if heading != "" && !headings(t, target)[heading] {
				t.Errorf("%s: %s has no heading for #%s", page, target, heading)
			}
		}
	}
}

// headings returns the anchors of a page, as GitHub makes them.
func headings(t *testing.T, page string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(page)
	testkit.Check(t, err)
	anchors := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if marks, heading, ok := strings.Cut(line, " "); ok && strings.Trim(marks, "#") == "" && marks != "" {
			anchor := regexp.MustCompile(`[^\p{L}\p{N}_ -]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), "")
			anchors[strings.ReplaceAll(anchor, " ", "-")] = true
		}
	}
	return anchors
}

// Each alert rule is in docs/metrics.md, and the pages name none that does not exist.
func TestAlertsOnPages(t *testing.T) {
	t.Chdir("../..")
	names := regexp.MustCompile(`\bAckpolicy[A-Z]\w+`)
	in := func(page string) map[string]bool {
		text, err := os.ReadFile(page)
		testkit.Check(t, err)
		found := map[string]bool{}
		for _, name := range names.FindAllString(string(text), -1) {
			found[name] = true
		}
		return found
	}
	rules, metrics := in("observability/alerts.yml"), in("docs/metrics.md")
	for name := range rules {
		if !metrics[name] {
			t.Errorf("docs/metrics.md does not name %s", name)
		}
	}
	for _, page := range []string{"docs/metrics.md", "docs/operations.md"} {
		for name := range in(page) {
			if !rules[name] {
				t.Errorf("%s names %s, which is no rule", page, name)
			}
		}
	}
}
