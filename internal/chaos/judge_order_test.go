package chaos

import (
	"testing"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// A partition has one owner, a record one handler at a time, and a lane keeps its order.
func TestJudgeOrder(t *testing.T) {
	judgeAll(t, map[string]judged{
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
	})
}
