package repository_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// Docs and comments use the standard words: a function returns, a broker responds, an event is
// reported, figures are per second.
func TestStandardWords(t *testing.T) {
	t.Chdir("../..")
	unusual := regexp.MustCompile(`(?i)\b(answer(s|ed|ing)?|anew|in vain|for ever|mend(s|ed)?|(tells?|told) (whether|when|how)|` +
		`(is|are|was|were|been|be) told|(hold|holds|held) (nothing |nobody |no \w+ |all \w+ )?up|` +
		`(records|letters|commits|messages) a second|(records?|handlers) (at once |at a time )?a partition|goes on|went on)\b`)
	check := func(path string, entry fs.DirEntry, err error) error {
		testkit.Check(t, err)
		switch name := entry.Name(); {
		case entry.IsDir() && (name == "testdata" || name == "target" || name != "." && name != ".ci" && strings.HasPrefix(name, ".")):
			return fs.SkipDir
		case entry.IsDir() || name == "words_test.go":
			return nil
		case !regexp.MustCompile(`\.(go|md|sh|py|java|html|js|yml)$|^run$`).MatchString(name):
			return nil
		}
		text, err := os.ReadFile(path)
		testkit.Check(t, err)
		n := 0
		for line := range bytes.Lines(text) {
			n++
			if word := unusual.Find(line); word != nil {
				t.Errorf("%s:%d: %q; use the standard word", path, n, word)
			}
		}
		return nil
	}
	testkit.Check(t, filepath.WalkDir(".", check))
}
