package topic

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Selection says which topics a subscription reads: names, and patterns of names.
//
// Patterns are globs, not regular expressions: "." is part of most names, so that some would be both
// a name and an expression.
type Selection struct {
	Text     string   // as given
	Names    []string // in the order given
	patterns []string
}

// Select reads a list of names and patterns with commas between them. No name contains a comma or
// a wildcard.
func Select(text string) (Selection, error) {
	s := Selection{Text: text}
	for _, item := range strings.Split(text, ",") {
		item = strings.TrimSpace(item)
		switch {
		case strings.Trim(item, legal+wildcards) != "" || item == "" || item == "." || item == ".." || len(item) > longest:
			return Selection{}, fmt.Errorf("topic %q: want a name, a pattern, or several with commas between them: "+
				"names have letters, digits, '.', '_' and '-', at most %d, patterns also '*' for any characters and '?' for one", text, longest)
		case strings.ContainsAny(item, wildcards):
			s.patterns = append(s.patterns, item)
		case !slices.Contains(s.Names, item):
			s.Names = append(s.Names, item)
		}
	}
	return s, nil
}

const (
	legal     = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	wildcards = "*?"
	longest   = 249
)

// Single returns the name if there is one, and no pattern.
func (s *Selection) Single() (name string, single bool) {
	if len(s.Names) == 1 && len(s.patterns) == 0 {
		return s.Names[0], true
	}
	return "", false
}

// Patterns reports whether there are any: then topics come and go.
func (s *Selection) Patterns() bool { return len(s.patterns) > 0 }

// Has reports whether a topic is one of those selected.
func (s *Selection) Has(name string) bool { return slices.Contains(s.Names, name) || s.Matches(name) }

// reserved begins the names of topics that are Kafka's own.
const reserved = "__"

// LettersSuffix is that of dead letter topics.
const LettersSuffix = ".dlq"

// Matches reports whether a pattern matches the whole name. Kafka's own topics, and dead letter
// topics, are only matched by patterns that have the beginning or end of their names.
func (s *Selection) Matches(name string) bool {
	return slices.ContainsFunc(s.patterns, func(pattern string) bool {
		switch {
		case strings.ContainsAny(name, wildcards): // it is a pattern
			return false
		case strings.HasPrefix(name, reserved) && !strings.HasPrefix(pattern, reserved):
			return false
		case strings.HasSuffix(name, LettersSuffix) && !strings.HasSuffix(pattern, LettersSuffix):
			return false
		}
		matched, _ := path.Match(pattern, name) // no pattern is malformed
		return matched
	})
}

// ID returns a legal name for the selection. That of a single topic is its own; otherwise it
// does not depend on the order.
func (s *Selection) ID() string {
	if name, single := s.Single(); single {
		return name
	}
	items := slices.Sorted(slices.Values(slices.Concat(s.Names, s.patterns)))
	text := strings.Join(items, ",")
	sum := sha256.Sum256([]byte(text))
	readable := strings.Map(func(r rune) rune {
		if strings.ContainsRune(legal, r) {
			return r
		}
		return '_'
	}, text)
	return readable[:min(len(readable), 100)] + "-" + hex.EncodeToString(sum[:8])
}
