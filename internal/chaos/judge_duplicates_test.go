package chaos

import (
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// What is delivered again was not settled, had no mark for want of room, or comes after a kill.
func TestJudgeDuplicates(t *testing.T) {
	judgeAll(t, map[string]judged{
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
	})
}

// A drain hands out nothing that was nacked, and no more than was under way.
func TestJudgeDrains(t *testing.T) {
	judgeAll(t, map[string]judged{
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
	})
}
