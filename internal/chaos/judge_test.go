package chaos

import (
	"slices"
	"strings"
	"testing"
)

// judged is a story and what the judge has to say of it.
type judged struct {
	records int64
	tell    func(s *story)
	rules   []string // that are broken
	figures func(f Figures) bool
}

func judgeAll(t *testing.T, stories map[string]judged) {
	for name, test := range stories {
		t.Run(name, func(t *testing.T) {
			s := newStory(test.records)
			test.tell(s)
			v := Judge(&s.Record)
			var rules []string
			for _, violation := range v.Violations {
				rules = append(rules, violation.Rule)
			}
			slices.Sort(rules)
			if !slices.Equal(rules, test.rules) {
				t.Errorf("broken rules: got %v, want %v", rules, test.rules)
			}
			if test.figures != nil && !test.figures(v.Figures) {
				t.Errorf("figures: %+v", v.Figures)
			}
			if t.Failed() {
				for _, violation := range v.Violations {
					t.Log(violation)
				}
			}
		})
	}
}

// Nothing is lost, commits go no further than what is settled, and processes end well.
func TestJudgeCommits(t *testing.T) {
	judgeAll(t, map[string]judged{
		"all is well": {3, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.nacked(0, 1, 1)
			s.again(0, 1, 2)
			s.committed(0, 2)
			s.revoked(0, 2)
			s.assigned(1, 2)
			s.handle(1, 2)
			s.done(1)
		}, nil, func(f Figures) bool { return f.Duplicates == 0 && f.Delivered == 4 }},
		"a record is lost": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.done(0)
		}, []string{RuleCommit, RuleLost}, func(f Figures) bool { return f.Lost == 1 }},
		"a nacked record is given up": {1, func(s *story) {
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.done(0)
		}, []string{RuleCommit, RuleLost}, nil},
		"the offset does not reach the end": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0, 1)
			s.done(0)
			s.Stored[0] = 1
		}, []string{RuleStuck}, nil},
		"a commit passes a record that is being handled": {2, func(s *story) {
			s.assigned(0, 0)
			s.start(0, 0)
			s.committed(0, 1)
			s.end(0, 0)
			s.handle(0, 1)
			s.done(0)
		}, []string{RuleCommit}, nil},
		"a commit passes a record that is being handled again": {1, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.killed(0)
			s.assigned(1, 0)
			s.start(1, 0)
			s.committed(1, 1)
			s.end(1, 0)
			s.done(1)
		}, []string{RuleCommit}, nil},
		"a commit goes back": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0, 1)
			s.committed(0, 2)
			s.committed(0, 1)
			s.done(0)
		}, []string{RuleCommit}, nil},
		"a late commit takes back what the next owner stored": {3, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0, 1)
			s.committed(0, 2)
			s.killed(0)
			s.assigned(1, 1)
			s.handle(1, 1, 2)
			s.done(1)
		}, []string{RuleCommit}, nil},
		"the next owner begins too early": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.revoked(0, 1)
			s.assigned(1, 0)
			s.handle(1, 0, 1)
			s.done(1)
		}, []string{RuleCommit, RuleDuplicate}, nil},
		"a member crashes": {1, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.done(0)
			s.add(1, Exited, 0, 0, "exit status 2")
		}, []string{RuleProcess}, nil},
		"a member ends without a release": {1, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.committed(0, 1)
			s.add(0, Exited, 0, 0, "")
		}, []string{RuleProcess, RuleSession}, nil},
	})
}

// TestLife shows what a violation says.
func TestLife(t *testing.T) {
	s := newStory(2)
	s.assigned(0, 0)
	s.handle(0, 0)
	s.start(0, 1)
	s.killed(0)
	s.assigned(1, 2)
	s.done(1)
	v := Judge(&s.Record)
	i := slices.IndexFunc(v.Violations, func(v Violation) bool { return v.Rule == RuleLost })
	if i < 0 {
		t.Fatalf("violations: %v", v.Violations)
	}
	got := v.Violations[i].String()
	for _, want := range []string{
		"lost: 0/1 was never settled for good",
		"0.001s member 0   assigned    0/0",
		"0.005s member 0   delivered   0/1 #1",
		"0.006s member 0   killed      signal: killed",
		"0.007s member 1   assigned    0/2",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
