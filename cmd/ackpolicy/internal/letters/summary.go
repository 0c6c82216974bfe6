package letters

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/cmd/ackpolicy/internal/cli"
)

// summary counts letters.
type summary struct {
	total                              int
	reasons, origins, handlers, groups map[string]int
	oldest, newest                     time.Time
	destinations                       map[string]int
	undeliverable                      []trouble
	copies                             int
	copyIDs                            []string
	seed                               maphash.Seed
	seen                               map[uint64]struct{} // by sameRejection, of one partition
	partition                          int32
}

// trouble is why letters cannot be sent.
type trouble struct {
	err   error
	first string
	n     int
}

const (
	maxShown = 10
	maxKinds = 10_000 // counted apart
)

func newSummary() *summary {
	return &summary{
		reasons: map[string]int{}, origins: map[string]int{}, handlers: map[string]int{}, groups: map[string]int{},
		destinations: map[string]int{}, seed: maphash.MakeSeed(), partition: -1,
	}
}

func (s *summary) add(l *letter) {
	s.total++
	count(s.reasons, l.kind())
	count(s.origins, known(cli.Cut(l.Origin.Topic, 249)))
	count(s.handlers, known(cli.Cut(l.Handler, 249)))
	count(s.groups, known(cli.Cut(l.Group, 249)))
	if t := l.RejectedAt; !t.IsZero() {
		if s.oldest.IsZero() || t.Before(s.oldest) {
			s.oldest = t
		}
		if t.After(s.newest) {
			s.newest = t
		}
	}
	if s.isCopy(l) {
		s.copies++
		if len(s.copyIDs) < maxShown {
			s.copyIDs = append(s.copyIDs, l.id())
		}
	}
}

// isCopy reports whether an earlier letter of the partition is of the same rejection.
func (s *summary) isCopy(l *letter) bool {
	if s.partition != l.record.Partition {
		s.partition, s.seen = l.record.Partition, map[uint64]struct{}{}
	}
	rejection, ok := l.rejection()
	if !ok {
		return false
	}
	h := maphash.Comparable(s.seed, rejection)
	_, seen := s.seen[h]
	s.seen[h] = struct{}{}
	return seen
}

// goes counts where a letter goes, or why it cannot.
func (s *summary) goes(l *letter, d *destination, err error) {
	if err == nil {
		s.destinations[d.topic]++
		return
	}
	for i := range s.undeliverable {
		if t := &s.undeliverable[i]; t.err.Error() == err.Error() {
			t.n++
			return
		}
	}
	if len(s.undeliverable) < maxShown {
		s.undeliverable = append(s.undeliverable, trouble{err, l.id(), 1})
	}
}

// missing is the letters that go to a topic that is not there, or cannot be asked for.
func (s *summary) missing() error {
	var errs []error
	for _, t := range s.undeliverable {
		if !errors.Is(t.err, errNoOrigin) && !errors.Is(t.err, errItself) && !errors.Is(t.err, errCutOff) {
			errs = append(errs, fmt.Errorf("%w (%s, the first is %s)", t.err, letters(t.n), t.first))
		}
	}
	return errors.Join(errs...)
}

func (s *summary) sendable() int {
	n := 0
	for _, m := range s.destinations {
		n += m
	}
	return n
}

func count(kinds map[string]int, kind string) {
	if _, ok := kinds[kind]; !ok && len(kinds) >= maxKinds {
		kind = "others"
	}
	kinds[kind]++
}

func known(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func (s *summary) print(w io.Writer) {
	if s.total == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s", letters(s.total))
	switch oldest, newest := cli.Stamp(s.oldest), cli.Stamp(s.newest); {
	case s.oldest.IsZero():
	case oldest == newest:
		fmt.Fprintf(w, ", rejected at %s", oldest)
	default:
		fmt.Fprintf(w, ", rejected from %s to %s", oldest, newest)
	}
	fmt.Fprintln(w)
	printCounts(w, "reason", s.reasons)
	printCounts(w, "origin", s.origins)
	printCounts(w, "handler", s.handlers)
	printCounts(w, "rejected by", s.groups)
	if s.copies > 0 {
		more := ""
		if s.copies > len(s.copyIDs) {
			more = ", …"
		}
		fmt.Fprintf(w, "\n%s of another one, by origin, group and count of rejections: a crash may have had them written twice.\n"+
			"To leave them out: skip --at %s%s\n", cli.Plural(s.copies, "is a copy", "are copies"), strings.Join(s.copyIDs, ","), more)
	}
}

func printCounts(w io.Writer, what string, kinds map[string]int) {
	names := slices.SortedFunc(maps.Keys(kinds), func(a, b string) int {
		return cmp.Or(cmp.Compare(kinds[b], kinds[a]), cmp.Compare(a, b))
	})
	for i, name := range names {
		if i == maxShown {
			fmt.Fprintf(w, "%-12s %7s  and %d more\n", what, "", len(names)-i)
			return
		}
		fmt.Fprintf(w, "%-12s %7d  %s\n", what, kinds[name], cli.Clean(name))
		what = ""
	}
}

func letters(n int) string { return cli.Plural(n, "letter", "letters") }
