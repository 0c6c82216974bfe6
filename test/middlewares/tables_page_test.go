package middlewares_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

var update = flag.Bool("update", false, "write the tables that the tests observe into docs/middlewares.md")

const middlewaresPage = "../../docs/middlewares.md"

// pageMu: tests that run at the same time update one page.
var pageMu sync.Mutex

// documented compares a table with the one of that name on the page.
func documented(t *testing.T, name, table string) {
	t.Helper()
	pageMu.Lock()
	defer pageMu.Unlock()
	text, err := os.ReadFile(middlewaresPage)
	testkit.Check(t, err)
	begin := fmt.Sprintf("<!-- observed: %s -->\n", name)
	before, rest, ok := strings.Cut(string(text), begin)
	if !ok {
		t.Fatalf("%s has no table %q", middlewaresPage, name)
	}
	documented, after, ok := strings.Cut(rest, "<!-- end -->\n")
	if !ok {
		t.Fatalf("%s: the table %q has no end", middlewaresPage, name)
	}
	switch {
	case documented == table || t.Failed():
	case *update:
		testkit.Check(t, os.WriteFile(middlewaresPage, []byte(before+begin+table+"<!-- end -->\n"+after), 0o644))
	default:
		t.Errorf("%s says otherwise about %s; if this is meant: go test ./test/middlewares -run TestMiddlewares -update\ngot:\n%s\nthere:\n%s",
			middlewaresPage, name, table, documented)
	}
}

// Each table on the page has a test.
func TestPageShowsWhatIsTested(t *testing.T) {
	text, err := os.ReadFile(middlewaresPage)
	testkit.Check(t, err)
	for _, part := range strings.Split(string(text), "<!-- observed: ")[1:] {
		name, _, _ := strings.Cut(part, " -->")
		if name != "none" && !slices.ContainsFunc(variants(), func(v variant) bool { return v.name == name }) {
			t.Errorf("nothing makes the table %q", name)
		}
	}
}

// text describes what became of the record.
func (s *sight) text() string {
	var words, seen []string
	for _, d := range s.deliveries {
		words = append(words, strings.ReplaceAll(d.Status().String(), "revoked", "pending"))
	}
	parts := []string{strings.Join(words, ", ")}
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if words[len(words)-1] == "acked" && !s.succeeded && len(s.poisoned) == 0 && !s.ending.acks {
		parts[0] += " and **lost**"
	}
	switch {
	case s.calls == 0:
		add("handler not called")
	case s.calls != len(s.deliveries):
		add("handler called %d×", s.calls)
	}
	if s.poisoned != nil {
		add("poisoned (%s)", strings.Join(s.poisoned, ", "))
	}
	switch {
	case s.succeeded && s.published == 0:
		add("**not published**")
	case s.published > 1, s.published == 1 && !s.succeeded:
		add("published %d×", s.published)
	}
	for _, err := range s.router {
		if err != "" {
			seen = append(seen, strings.ReplaceAll(err, "\n", ", "))
		}
	}
	if seen != nil {
		add("Router: %s", strings.Join(seen, ", "))
	}
	return strings.Join(parts, "; ")
}

// tableOf is that of the policies alone.
func tableOf(seen []*sight) string {
	return table("| the handler | policy | |\n|---|---|---|\n", endings, func(e ending, policy ackpolicy.Policy) string {
		return at(seen, true, policy, e).text()
	})
}

func at(seen []*sight, outside bool, policy ackpolicy.Policy, e ending) *sight {
	return seen[slices.IndexFunc(seen, func(s *sight) bool {
		return s.outside == outside && s.policy == policy && s.ending.name == e.name
	})]
}

// table shows where the middleware makes a difference.
func (v variant) table(alone, seen []*sight) string {
	head, orders := "| the handler | policy | ours outside it | ours inside it |\n|---|---|---|---|\n", []bool{true, false}
	if v.stack {
		head, orders = "| the handler | policy | |\n|---|---|---|\n", orders[:1]
	}
	rows := endings
	if v.only != nil {
		rows = slices.DeleteFunc(slices.Clone(rows), func(e ending) bool { return !slices.Contains(v.only, e.name) })
	}
	return table(head, rows, func(e ending, policy ackpolicy.Policy) string {
		var cells []string
		differ := false
		for _, outside := range orders {
			s := at(seen, outside, policy, e)
			text := s.text()
			if text == at(alone, true, policy, e).text() {
				text = "–"
			}
			cells = append(cells, strings.Join(append([]string{text}, s.notes...), "; "))
			differ = differ || cells[len(cells)-1] != "–"
		}
		if !differ {
			return ""
		}
		return strings.Join(cells, " | ")
	})
}

// row is what was seen of some endings under some policies.
type row struct {
	endings, policies []string
	cells             string
}

// table renders one line for what nothing distinguishes. A place without cells is left out.
func table(head string, endings []ending, cells func(e ending, policy ackpolicy.Policy) string) string {
	var groups [][]row // of endings that are the same under every policy
	listed := 0
	for _, e := range endings {
		var rows []row
		for _, policy := range testkit.Policies {
			text := cells(e, policy)
			if text == "" {
				continue
			}
			i := slices.IndexFunc(rows, func(r row) bool { return r.cells == text })
			if i < 0 {
				i, rows = len(rows), append(rows, row{cells: text})
			}
			rows[i].policies = append(rows[i].policies, policy.String())
		}
		if rows == nil {
			continue
		}
		listed++
		i := slices.IndexFunc(groups, func(other []row) bool {
			return slices.EqualFunc(rows, other, func(a, b row) bool { return a.cells == b.cells && slices.Equal(a.policies, b.policies) })
		})
		if i < 0 {
			i, groups = len(groups), append(groups, rows)
		}
		groups[i][0].endings = append(groups[i][0].endings, e.name)
	}
	if groups == nil {
		return "It makes no difference.\n"
	}
	text := head
	for _, rows := range groups {
		names := rows[0].endings
		who := strings.Join(names, "; ")
		switch {
		case listed < len(endings) || len(endings) == 1:
		case len(names) == len(endings):
			who = "whatever it does"
		case len(names) > len(endings)/2:
			who = "whatever else it does"
		}
		for _, r := range rows {
			which := strings.Join(r.policies, ", ")
			if len(r.policies) == len(testkit.Policies) {
				which = "any"
			}
			text += fmt.Sprintf("| %s | %s | %s |\n", who, which, r.cells)
		}
	}
	return text
}
