package chaos

import (
	"slices"
	"strings"
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

func TestJudge(t *testing.T) {
	for name, test := range map[string]struct {
		records int64
		tell    func(s *story)
		rules   []string // that are broken
		figures func(f Figures) bool
	}{
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
		"two owners": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.assigned(1, 1)
			s.revoked(0, 1)
			s.handle(1, 1)
			s.done(1)
		}, []string{RuleOwners}, nil},
		"two owners, one of which was stopped": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.add(0, Stopped, 0, 0, "4s")
			s.wait(4 * time.Second)
			s.assigned(1, 0)
			s.handle(1, 0, 1)
			s.add(0, Resumed, 0, 0, "")
			s.revokedSo(0, 1, howEnded{FirstLeft: -1})
			s.done(1)
		}, nil, func(f Figures) bool { return f.Duplicates == 1 && f.Losses == 1 && f.Bound == 3 }},
		"a member stopped before it knew of its assignment": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.revoked(0, 0)
			s.add(1, Stopped, 0, 0, "4s")
			s.wait(4 * time.Second)
			s.assigned(2, 0)
			s.handle(2, 0)
			s.committed(2, 1)
			s.add(1, Resumed, 0, 0, "")
			s.assigned(1, 0)
			s.revokedSo(1, 0, howEnded{FirstLeft: -1})
			s.handle(2, 1)
			s.done(2)
		}, []string{RuleDuplicate}, nil},
		"a session lost without a cause": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.add(0, Fenced, 1, 0, "")
			s.revokedSo(0, 1, howEnded{FirstLeft: -1})
			s.assigned(1, 0)
			s.handle(1, 0, 1)
			s.done(1)
		}, []string{RuleSession}, nil},
		"a record is delivered while its handler runs": {1, func(s *story) {
			s.assigned(0, 0)
			s.start(0, 0)
			s.add(0, Delivered, 0, 2, "")
			s.end(0, 0)
			s.done(0)
		}, []string{RuleOverlap, RuleOverlap, RuleOwners}, nil},
		"a record is delivered again though it was acked": {1, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.again(0, 0, 2)
			s.done(0)
		}, []string{RuleOverlap}, nil},
		"a handler of the lane runs": {2, func(s *story) {
			s.assigned(0, 0)
			s.start(0, 0)
			s.start(0, 1)
			s.end(0, 0)
			s.end(0, 1)
			s.done(0)
		}, []string{RuleOverlap}, nil},
		"a handler of the lane waits for a commit": {2, func(s *story) {
			s.Policy = ackpolicy.Manual
			s.assigned(0, 0)
			s.start(0, 0)
			s.add(0, Call, 0, 1, ackSync)
			s.handle(0, 1)
			s.add(0, Returned, 0, 1, ackSync+" true")
			s.add(0, Done, 0, 1, none)
			s.done(0)
		}, []string{RuleOverlap}, nil},
		"a handler of another key runs": {2, func(s *story) {
			s.Ordering = ackpolicy.OrderByKey
			s.assigned(0, 0)
			s.start(0, 0)
			s.start(0, 1)
			s.end(0, 1)
			s.end(0, 0)
			s.done(0)
		}, nil, nil},
		"a record overtakes": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 1, 0)
			s.done(0)
		}, []string{RuleOrder}, nil},
		"a record overtakes one that was nacked": {2, func(s *story) {
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.handle(0, 1)
			s.again(0, 0, 2)
			s.done(0)
		}, []string{RuleOrder, RuleOrder}, nil},
		"one nacked by another key waits": {2, func(s *story) {
			s.Ordering = ackpolicy.OrderByKey
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.handle(0, 1)
			s.again(0, 0, 2)
			s.done(0)
		}, nil, nil},
		"an attempt is skipped": {1, func(s *story) {
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.again(0, 0, 3)
			s.done(0)
		}, []string{RuleOverlap}, nil},
		"the next owner counts attempts on": {1, func(s *story) {
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0})
			s.assigned(1, 0)
			s.again(1, 0, 2)
			s.done(1)
		}, nil, nil},
		"the next owner counts too far": {1, func(s *story) {
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0})
			s.assigned(1, 0)
			s.again(1, 0, 3)
			s.done(1)
		}, []string{RuleOrder}, nil},
		"a record comes after a later one that the last owner settled": {9, func(s *story) {
			s.Ordering = ackpolicy.OrderByKey
			s.assigned(0, 0)
			s.handle(0, 8) // the key of 0
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0})
			s.assigned(1, 0)
			s.handle(1, 0, 1, 2, 3, 4, 5, 6, 7) // 8 has its mark
			s.done(1)
		}, []string{RuleOrder}, func(f Figures) bool { return f.Marked == 1 }},
		"a duplicate after a clean end": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.revoked(0, 0)
			s.assigned(1, 0)
			s.handle(1, 0, 1)
			s.done(1)
		}, []string{RuleDuplicate}, nil},
		"a duplicate behind one that was left": {2, func(s *story) {
			s.Ordering = ackpolicy.Unordered
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.handle(0, 1)
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0})
			s.assigned(1, 0)
			s.handle(1, 0, 1)
			s.done(1)
		}, []string{RuleDuplicate}, func(f Figures) bool { return f.Left == 1 && f.Unmarked == 0 && f.Duplicates == 0 }},
		"what is settled behind one that was left has its mark": {3, func(s *story) {
			s.Ordering = ackpolicy.Unordered
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.handle(0, 1)
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0})
			s.assigned(1, 0)
			s.killed(1)
			s.assigned(2, 0)
			s.again(2, 0, 2)
			s.committed(2, 2)
			s.handle(2, 2)
			s.done(2)
		}, nil, func(f Figures) bool { return f.Left == 1 && f.Marked == 1 }},
		"a duplicate of one that was settled two owners before": {2, func(s *story) {
			s.Ordering = ackpolicy.Unordered
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.handle(0, 1)
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0})
			s.assigned(1, 0)
			s.killed(1)
			s.assigned(2, 0)
			s.again(2, 0, 2)
			s.handle(2, 1)
			s.done(2)
		}, []string{RuleDuplicate}, nil},
		"as many duplicates as marks had no room": {4, func(s *story) {
			s.Ordering = ackpolicy.Unordered
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.handle(0, 1, 2, 3)
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0, Unmarked: 1})
			s.assigned(1, 0)
			s.revokedSo(1, 0, howEnded{Clean: true, FirstLeft: -1, Unmarked: 2})
			s.assigned(2, 0)
			s.again(2, 0, 2)
			s.handle(2, 1, 2, 3)
			s.done(2)
		}, nil, func(f Figures) bool { return f.Unmarked == 3 && f.Left == 1 && f.Duplicates == 0 }},
		"more duplicates than marks had no room": {3, func(s *story) {
			s.Ordering = ackpolicy.Unordered
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.handle(0, 1, 2)
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0, Unmarked: 1})
			s.assigned(1, 0)
			s.again(1, 0, 2)
			s.handle(1, 1, 2)
			s.done(1)
		}, []string{RuleDuplicate}, func(f Figures) bool { return f.Unmarked == 1 }},
		"a handler ends as its drain is given up": {1, func(s *story) {
			s.assigned(0, 0)
			s.start(0, 0)
			s.add(0, Done, 0, 1, ack) // and had no time to ack
			s.revokedSo(0, 0, howEnded{Clean: true, TimedOut: true, FirstLeft: 0})
			s.assigned(1, 0)
			s.again(1, 0, 2)
			s.done(1)
		}, nil, func(f Figures) bool { return f.Left == 1 }},
		"an ack before its drain is given up": {2, func(s *story) {
			s.Ordering = ackpolicy.Unordered
			s.assigned(0, 0)
			s.start(0, 0)
			s.handle(0, 1)
			s.revokedSo(0, 0, howEnded{Clean: true, TimedOut: true, FirstLeft: 0})
			s.assigned(1, 0)
			s.again(1, 0, 2)
			s.again(1, 1, 2)
			s.done(1)
		}, []string{RuleDuplicate}, nil},
		"a duplicate of what AckSync had reported as stored": {2, func(s *story) {
			s.Policy, s.Ordering = ackpolicy.Manual, ackpolicy.Unordered
			s.assigned(0, 0)
			s.start(0, 0)
			s.start(0, 1)
			s.verb(0, 1, ackSync, "true")
			s.add(0, Done, 1, 1, none)
			s.killed(0)
			s.assigned(1, 0)
			s.handle(1, 0, 1)
			s.done(1)
		}, []string{RuleDuplicate}, nil},
		"a drain hands out a record that was nacked meanwhile": {1, func(s *story) {
			s.Ordering = ackpolicy.OrderByKey
			s.assigned(0, 0)
			s.start(0, 0)
			s.draining(0, 0, 1)
			s.add(0, Done, 0, 1, nack)
			s.add(0, Settled, 0, 1, "nacked")
			s.again(0, 0, 2)
			s.done(0)
		}, []string{RuleDrain}, nil},
		"a drain hands out a nacked record that comes due": {2, func(s *story) {
			s.Ordering = ackpolicy.Unordered
			s.assigned(0, 0)
			s.nacked(0, 0, 1)
			s.start(0, 1)
			s.draining(0, 0, 1)
			s.wait(time.Second)
			s.again(0, 0, 2)
			s.end(0, 1)
			s.done(0)
		}, []string{RuleDrain}, nil},
		"a drain hands out the next record of a lane": {9, func(s *story) {
			s.Ordering = ackpolicy.OrderByKey
			s.assigned(0, 0)
			s.handle(0, 1, 2, 3, 4, 5, 6, 7)
			s.start(0, 0)
			s.draining(0, 0, 1)
			s.end(0, 0)
			s.handle(0, 8) // the key of 0
			s.done(0)
		}, []string{RuleDrain}, nil},
		"a drain hands out more than it had slots for": {maxInFlight + 1, func(s *story) {
			s.Ordering = ackpolicy.Unordered
			s.assigned(0, 0)
			s.start(0, 0)
			s.draining(0, 0, 1)
			for offset := range int64(maxInFlight) {
				s.handle(0, offset+1)
			}
			s.end(0, 0)
			s.done(0)
		}, []string{RuleDrain}, nil},
		"a handler begins in a drain, its record was handed out before": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.draining(0, 0, 1)
			s.handle(0, 1)
			s.done(0)
		}, nil, nil},
		"a drain is reported late": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.revoked(0, 1)
			s.assigned(0, 1)
			s.start(0, 1)
			s.draining(0, 0, 1)
			s.add(0, Done, 1, 1, nack)
			s.add(0, Settled, 1, 1, "nacked")
			s.again(0, 1, 2)
			s.done(0)
		}, nil, nil},
		"duplicates after a kill": {4, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0, 1)
			s.start(0, 2)
			s.killed(0)
			s.assigned(1, 0)
			s.handle(1, 0, 1, 2, 3)
			s.done(1)
		}, nil, func(f Figures) bool { return f.Duplicates == 3 && f.MaxReplay == 3 && f.Kills == 1 }},
		"too many duplicates after a kill": {4, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0, 1, 2, 3)
			s.killed(0)
			s.assigned(1, 0)
			s.handle(1, 0, 1, 2, 3)
			s.done(1)
		}, []string{RuleDuplicate}, nil},
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
		"a delivery after the release": {2, func(s *story) {
			s.assigned(0, 0)
			s.handle(0, 0)
			s.revoked(0, 1)
			s.start(0, 1)
			s.assigned(1, 1)
			s.handle(1, 1)
			s.done(1)
		}, []string{RuleOwners}, nil},
		"a handler outlives a drain that was not timed out": {1, func(s *story) {
			s.assigned(0, 0)
			s.start(0, 0)
			s.revokedSo(0, 0, howEnded{Clean: true, FirstLeft: 0})
			s.end(0, 0)
			s.assigned(1, 0)
			s.handle(1, 0)
			s.done(1)
		}, []string{RuleOwners}, nil},
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
	} {
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
