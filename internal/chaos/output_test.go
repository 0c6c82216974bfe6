package chaos

import (
	"slices"
	"testing"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// TestJudgeOutputs has what a consumer of the output may find: of 64 records that are acked and one that is rejected. The
// outputs of one key, with the offsets 0, 32 and 64, are in a partition of their own.
func TestJudgeOutputs(t *testing.T) {
	const records = 65
	rejected := ID{0, 10}
	for name, test := range map[string]struct {
		change func(r *Record)
		broken map[string]int
		least  map[string]int // at least once
	}{
		"all is well": {func(*Record) {}, nil, nil},
		"an output is missing": {func(r *Record) { r.Outputs[1] = r.Outputs[1][1:] },
			map[string]int{RuleOutput: 1}, map[string]int{RuleOutput: 1}},
		"an output is there twice": {func(r *Record) { r.Outputs[1] = slices.Insert(r.Outputs[1], 0, ID{0, 1}) },
			map[string]int{RuleOutput: 1}, nil},
		"one of a rejected record": {func(r *Record) { r.Outputs[1] = slices.Insert(r.Outputs[1], 0, rejected) },
			map[string]int{RuleOutput: 1}, nil},
		"an output in place of a letter": {func(r *Record) {
			r.Outputs[1] = slices.Insert(r.Outputs[1], 0, rejected)
			delete(r.Letters, rejected)
		}, map[string]int{RuleOutput: 1, RuleLetter: 1}, nil},
		"two letters": {func(r *Record) { r.Letters[rejected] = 2 },
			map[string]int{RuleOutput: 1, RuleLetter: 1}, nil},
		"the outputs of a key change places": {func(r *Record) { r.Outputs[0] = []ID{{0, 64}, {0, 0}, {0, 32}} },
			map[string]int{RuleOutput: 1}, nil},
		"an open transaction": {func(r *Record) { r.Open = []string{"topic.out/0: producer 1 from offset 3"} },
			map[string]int{RuleOpen: 1}, map[string]int{RuleOpen: 1}},
		"a producer that aborts twice": {func(r *Record) { r.Aborted = []string{"topic.out/0: producer 1 has 2"} },
			map[string]int{RuleAborted: 1}, map[string]int{RuleAborted: 1}},
		"a refused output": {func(r *Record) {
			r.Entries = append(r.Entries, Entry{Member: 0, Kind: Unpublished, ID: ID{0, 7}, Attempt: 1, Detail: "too large"})
		}, map[string]int{RuleOutput: 1}, map[string]int{RuleOutput: 1}},
	} {
		for output, want := range map[string]map[string]int{ExactlyOnce: test.broken, AtLeastOnce: test.least} {
			t.Run(name+", "+output, func(t *testing.T) {
				s := newStory(records)
				s.Output, s.Ordering, s.MaxUncommitted = output, ackpolicy.OrderByKey, records
				s.Outputs = make([][]ID, 2)
				s.assigned(0, 0)
				for offset := range int64(records) {
					id := ID{0, offset}
					if id == rejected {
						s.rejected(0, offset)
						s.add(0, DeadLettered, offset, 0, "")
						s.Letters[id] = 1
						continue
					}
					s.handle(0, offset)
					at := 1
					if s.key(id) == s.key(ID{}) {
						at = 0
					}
					s.Outputs[at] = append(s.Outputs[at], id)
				}
				s.done(0)
				test.change(&s.Record)
				v := Judge(&s.Record)
				if len(v.Counts) != len(want) {
					t.Errorf("violations: %v", v.Violations)
				}
				for rule, n := range want {
					if v.Counts[rule] != n {
						t.Errorf("%s: %d violations, want %d: %v", rule, v.Counts[rule], n, v.Violations)
					}
				}
			})
		}
	}
}
