package chaos

import (
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// A rejected record has one letter, before its commit.
func TestJudgeLetters(t *testing.T) {
	judgeAll(t, map[string]judged{
		"a letter": {1, func(s *story) {
			s.assigned(0, 0)
			s.rejected(0, 0)
			s.add(0, DeadLettered, 0, 0, "")
			s.Letters[ID{}] = 1
			s.done(0)
		}, nil, nil},
		"a commit before the letter": {1, func(s *story) {
			s.assigned(0, 0)
			s.rejected(0, 0)
			s.committed(0, 1)
			s.add(0, DeadLettered, 0, 0, "")
			s.Letters[ID{}] = 1
			s.done(0)
		}, []string{RuleCommit}, nil},
		"no letter": {1, func(s *story) {
			s.assigned(0, 0)
			s.rejected(0, 0)
			s.add(0, DeadLettered, 0, 0, "")
			s.done(0)
		}, []string{RuleLetter}, nil},
		"a letter too many": {1, func(s *story) {
			s.assigned(0, 0)
			s.rejected(0, 0)
			s.add(0, DeadLettered, 0, 0, "")
			s.Letters[ID{}] = 2
			s.done(0)
		}, []string{RuleLetter}, nil},
		"a letter too many, behind a record that was left": {2, func(s *story) {
			s.Ordering = ackpolicy.Unordered
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.rejected(0, 1)
			s.add(0, DeadLettered, 1, 0, "")
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0})
			s.Letters[ID{0, 1}] = 2
			s.assigned(1, 0)
			s.again(1, 0, 2)
			s.done(1)
		}, []string{RuleLetter}, nil},
		"a letter is stored as its record is left": {1, func(s *story) {
			s.assigned(0, 0)
			s.rejected(0, 0)
			s.add(0, DeadLettered, 0, 0, "")
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0, Letters: 1})
			s.assigned(1, 0)
			s.rejected(1, 0)
			s.add(1, DeadLettered, 0, 0, "")
			s.Letters[ID{}] = 2
			s.done(1)
		}, nil, func(f Figures) bool { return f.Left == 1 && f.ExtraLetters == 1 }},
		"a letter of a record that was acked": {1, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.Letters[ID{}] = 1
			s.done(0)
		}, []string{RuleLetter}, nil},
	})
}

// A verb's result is true to what becomes of its record.
func TestJudgeVerbs(t *testing.T) {
	judgeAll(t, map[string]judged{
		"acks in a batch": {3, func(s *story) {
			s.Policy = ackpolicy.Manual
			s.assigned(0, 0)
			for offset := range int64(3) {
				s.start(0, offset)
				s.add(0, Done, offset, 1, none)
			}
			s.verb(0, 2, ackCumulative, "true")
			for offset := range int64(3) {
				s.add(0, Settled, offset, 1, "acked")
			}
			s.done(0)
		}, nil, nil},
		"a commit before the batch": {2, func(s *story) {
			s.Policy = ackpolicy.Manual
			s.assigned(0, 0)
			for offset := range int64(2) {
				s.start(0, offset)
				s.add(0, Done, offset, 1, none)
			}
			s.committed(0, 1)
			s.verb(0, 1, ackCumulative, "true")
			s.done(0)
		}, []string{RuleCommit}, nil},
		"an ack is refused": {1, func(s *story) {
			s.Policy = ackpolicy.Manual
			s.assigned(0, 0)
			s.start(0, 0)
			s.verb(0, 0, ack, "false")
			s.add(0, Done, 0, 1, none)
			s.done(0)
		}, []string{RuleCommit, RuleLost, RuleVerb}, nil},
		"AckSync gives up while the member closes": {1, func(s *story) {
			s.Policy = ackpolicy.Manual
			s.assigned(0, 0)
			s.start(0, 0)
			s.add(0, Closing, 0, 0, "")
			s.verb(0, 0, ackSync, "false")
			s.add(0, Done, 0, 1, none)
			s.done(0)
		}, nil, nil},
		"an ack is accepted too late": {1, func(s *story) {
			s.Policy = ackpolicy.Manual
			s.assigned(0, 0)
			s.start(0, 0)
			s.add(0, Done, 0, 1, none)
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0})
			s.verb(0, 0, ack, "true")
			s.assigned(1, 0)
			s.start(1, 0)
			s.verb(1, 0, ack, "true")
			s.add(1, Done, 0, 1, none)
			s.done(1)
		}, []string{RuleVerb}, nil},
		"an ack too late is refused": {1, func(s *story) {
			s.Policy = ackpolicy.Manual
			s.assigned(0, 0)
			s.start(0, 0)
			s.add(0, Done, 0, 1, none)
			s.add(0, Stopped, 0, 0, "4s")
			s.wait(4 * time.Second)
			s.add(0, Resumed, 0, 0, "")
			s.revokedSo(0, 0, howEnded{FirstLeft: 0})
			s.verb(0, 0, ack, "false")
			s.assigned(1, 0)
			s.start(1, 0)
			s.verb(1, 0, ack, "true")
			s.add(1, Done, 0, 1, none)
			s.done(1)
		}, nil, nil},
		"a record is settled otherwise": {1, func(s *story) {
			s.assigned(0, 0)
			s.start(0, 0)
			s.add(0, Done, 0, 1, ack)
			s.add(0, Settled, 0, 1, "rejected")
			s.done(0)
		}, []string{RuleVerb}, nil},
	})
}

// Under AckFirst no record is handled twice, and those that are not were in flight at a kill.
func TestJudgeAckFirst(t *testing.T) {
	judgeAll(t, map[string]judged{
		"at most once": {3, func(s *story) {
			s.Policy = ackpolicy.AckFirst
			s.assigned(0, 0)
			s.committed(0, 1)
			s.start(0, 0)
			s.committed(0, 2) // and killed before the handler runs
			s.killed(0)
			s.assigned(1, 2)
			s.committed(1, 3)
			s.start(1, 2)
			s.add(1, Done, 2, 1, none)
			s.done(1)
		}, nil, func(f Figures) bool { return f.Unhandled == 1 && f.Lost == 0 }},
		"twice under AckFirst": {1, func(s *story) {
			s.Policy = ackpolicy.AckFirst
			s.assigned(0, 0)
			s.start(0, 0)
			s.killed(0)
			s.assigned(1, 0)
			s.start(1, 0)
			s.add(1, Done, 0, 1, none)
			s.done(1)
		}, []string{RuleAtMost}, nil},
		"lost under AckFirst without a kill": {2, func(s *story) {
			s.Policy = ackpolicy.AckFirst
			s.assigned(0, 0)
			s.start(0, 0)
			s.add(0, Done, 0, 1, none)
			s.revoked(0, 2)
			s.done(0)
		}, []string{RuleLost}, nil},
		"more lost under AckFirst than were in flight": {3, func(s *story) {
			s.Policy = ackpolicy.AckFirst
			s.assigned(0, 0)
			s.killed(0)
			s.assigned(1, 2)
			s.start(1, 2)
			s.add(1, Done, 2, 1, none)
			s.done(1)
		}, []string{RuleLost}, func(f Figures) bool { return f.Unhandled == 1 && f.Lost == 1 }},
		"confirmed by a mark, and killed": {3, func(s *story) {
			s.Policy, s.Ordering = ackpolicy.AckFirst, ackpolicy.Unordered
			s.assigned(0, 0)
			s.killed(0) // before the handler of 1 runs
			s.assigned(1, 0)
			for _, offset := range []int64{0, 2} {
				s.start(1, offset)
				s.add(1, Done, offset, 1, none)
			}
			s.done(1)
		}, nil, func(f Figures) bool { return f.Unhandled == 1 && f.Lost == 0 }},
	})
}
