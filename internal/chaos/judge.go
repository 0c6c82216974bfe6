package chaos

import (
	"fmt"
	"slices"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Violation is something that docs/semantics.md does not allow.
type Violation struct {
	Rule string
	What string
	Life string // of the record or partition, from the ledger
}

func (v Violation) String() string { return v.Rule + ": " + v.What + "\n" + v.Life }

// The rules.
const (
	RuleLost      = "lost"       // a record was never settled for good
	RuleStuck     = "stuck"      // the stored offset does not reach the end
	RuleOrder     = "order"      // a record overtook, or was overtaken by, one of its lane
	RuleOverlap   = "overlap"    // two handlers of a record, or of a lane, at once
	RuleOwners    = "owners"     // two members own a partition
	RuleCommit    = "commit"     // a commit passed what was not settled, or went back
	RuleDuplicate = "duplicate"  // a settled record was delivered again without a crash, or too many were with one
	RuleDrain     = "drain"      // a record was handed out by an assignment that drained
	RuleLetter    = "letter"     // a rejected record without a letter, or one too many
	RuleVerb      = "verb"       // a verb's result, or what was settled, is not what was asked for
	RuleSession   = "session"    // a member lost its session, and nobody took it
	RuleProcess   = "process"    // a member did not end as it should
	RuleAtMost    = "atmostonce" // a record was delivered twice under AckFirst
	RuleOutput    = "output"     // a record's output or letter is missing, there twice, or out of order
	RuleOpen      = "open"       // a transaction does not end
	RuleAborted   = "aborted"    // a producer has more than one aborted transaction in a partition
)

// maxExamples bounds how many violations of one rule are shown in full.
const maxExamples = 4

// Verdict is what the judge finds.
type Verdict struct {
	Figures
	Violations []Violation
	Counts     map[string]int // of violations, by rule
}

// judge collects violations.
type judge struct {
	*history
	Verdict
}

// Judge holds a run's ledger against the rules.
func Judge(r *Record) Verdict {
	j := &judge{history: newHistory(r)}
	j.Counts = map[string]int{}
	j.count()
	if r.Stock {
		j.stock()
		return j.Verdict
	}
	if r.Output != "" {
		j.outputs()
	}
	if r.Output == AtLeastOnce { // whether an output was published, the ledger does not say
		return j.Verdict
	}
	j.processes()
	j.stored()
	for _, terms := range j.byPartition {
		for i, t := range terms {
			j.session(t)
			j.term(t)
			j.lanes(t)
			j.slots(t)
			j.commits(terms[:i], t)
			if i > 0 {
				j.succession(terms[:i], t)
			}
		}
		j.overtaken(terms)
	}
	for p, end := range j.Ends {
		for offset := range end {
			id := ID{int32(p), offset}
			j.fate(id)
			j.letter(id)
		}
	}
	j.duplicates()
	return j.Verdict
}

func (j *judge) violation(rule string, life func() string, format string, args ...any) {
	j.Counts[rule]++
	if j.Counts[rule] <= maxExamples {
		j.Violations = append(j.Violations, Violation{rule, fmt.Sprintf(format, args...), life()})
	}
}

func (j *judge) about(id ID) func() string    { return func() string { return j.life(id) } }
func (j *judge) around(t *term) func() string { return func() string { return j.lifeOfTerm(t) } }

// processes: a member ends by itself, and releases its partitions, unless it is killed.
func (j *judge) processes() {
	for _, e := range j.Entries {
		if bad := (e.Kind == Exited && e.Detail != "") || (e.Kind == Killed && e.Detail != "signal: killed"); bad {
			j.violation(RuleProcess, func() string { return "" }, "member %d: %s: %s", e.Member, e.Kind, e.Detail)
		}
	}
	for _, terms := range j.byPartition {
		for _, t := range terms {
			if !t.released && !t.killed {
				j.violation(RuleProcess, j.around(t), "%v was never released", t)
			}
		}
	}
}

func (j *judge) stored() {
	for p, end := range j.Ends {
		if stored := j.Stored[p]; stored != end {
			j.violation(RuleStuck, j.about(ID{int32(p), max(0, stored)}), "partition %d: %d is stored at the end, not %d", p, stored, end)
		}
	}
}

// session: who did nothing to a member does not make it lose its session.
func (j *judge) session(t *term) {
	if t.lost && !t.explained {
		j.violation(RuleSession, j.around(t), "%v ended without its last commit, and nothing had been done to the member", t)
	}
}

// term: no two deliveries of a record at once, none after the release, and verbs return what is so.
func (j *judge) term(t *term) {
	for _, d := range t.deliveries {
		switch {
		case d.Offset < t.start:
			j.violation(RuleCommit, j.about(d.ID), "%v was delivered to member %d though %d was stored", d.ID, d.member, t.start)
		case t.released && !t.how.TimedOut && d.at > t.to:
			j.violation(RuleOwners, j.about(d.ID), "%v was delivered to member %d after its release", d.ID, d.member)
		case t.released && !t.how.TimedOut && d.end > t.to:
			j.violation(RuleOwners, j.about(d.ID), "%v was with member %d still when its partition was released, though not timed out", d.ID, d.member)
		}
		for _, c := range d.calls {
			j.call(c)
		}
		if j.Policy != ackpolicy.AckFirst {
			j.settlement(d)
		}
	}
}

func (j *judge) call(c *call) {
	before := c.reported > 0 && c.reported < c.at
	closing, closes := j.closing[c.member]
	switch {
	case c.back == never:
	case c.verb == ackSync && closes && closing < c.back: // it may have to give up: the record stays acked
	case !c.result && !c.lost && !c.how.TimedOut && !before:
		j.violation(RuleVerb, j.about(c.ID), "%v: member %d: %s was refused", c.ID, c.member, c.verb)
	case c.result && c.released && c.at > c.to && !before:
		j.violation(RuleVerb, j.about(c.ID), "%v: member %d: %s was accepted after the release", c.ID, c.member, c.verb)
	}
}

// settlement: what the subscriber reports is what was asked for.
func (j *judge) settlement(d *delivery) {
	want := map[string]string{"acked": ack, "nacked": nack, "rejected": reject}[d.settled]
	if want == "" {
		return
	}
	if _, ok := d.intends(want); ok {
		return
	}
	if _, ok := d.settledAt[d.Offset]; ok && want == ack && len(d.cumulative) > 0 {
		return
	}
	j.violation(RuleVerb, j.about(d.ID), "%v: member %d: it was %s, which nobody had asked for", d.ID, d.member, d.settled)
}

// first: the first delivery of a record in a term is counted on from those of earlier terms, as far as a commit
// reported them. A member that hands out in small groups has a commit name a record before its handler begins: if it is
// lost meanwhile, that counts as a delivery.
func (j *judge) first(d *delivery) {
	earlier, lost := 0, false
	for _, t := range j.byPartition[d.partition] {
		if t == d.term {
			break
		}
		if lost && t.lost {
			earlier++
		}
		lost = t.lost
	}
	for _, other := range j.records[d.ID] {
		if other.at < d.at {
			earlier++
		}
	}
	if d.attempt < 1 || d.attempt > earlier+1 {
		j.violation(RuleOrder, j.about(d.ID), "%v: member %d: its first delivery is number %d, after %d earlier ones", d.ID, d.member, d.attempt, earlier)
	}
}

// lanes: a lane's records are handled one after another, in order, and a nacked one again before those behind it.
func (j *judge) lanes(t *term) {
	last := map[string]*delivery{}
	for _, d := range t.deliveries {
		lane := j.lane(d.ID)
		if lane == "" {
			lane = d.ID.String()
		}
		before := last[lane]
		last[lane] = d
		if before == nil {
			j.first(d)
			continue
		}
		if d.at < before.end {
			j.violation(RuleOverlap, j.about(d.ID), "%v was delivered to member %d while the handler of %v ran there", d.ID, d.member, before.ID)
		}
		at, nacked := before.intends(nack)
		// When a handler begins does not show when its record was handed out. But that was not before its lane was free
		// and, after a nack, not before the record was due.
		notBefore := before.end
		if nacked && d.Offset == before.Offset {
			notBefore = max(notBefore, add(at, j.waits(d.ID, before.attempt)))
		}
		if t.draining > 0 && notBefore > t.draining && d.at >= before.end {
			j.violation(RuleDrain, j.about(d.ID), "%v was handed out by member %d, whose partition drained", d.ID, d.member)
		}
		switch {
		case d.Offset < before.Offset:
			j.violation(RuleOrder, j.about(d.ID), "%v was delivered to member %d after %v", d.ID, d.member, before.ID)
		case d.Offset == before.Offset && (!nacked || d.attempt != before.attempt+1):
			j.violation(RuleOverlap, j.about(d.ID), "%v: member %d: delivery %d follows delivery %d, which was not nacked",
				d.ID, d.member, d.attempt, before.attempt)
		case d.Offset > before.Offset:
			j.first(d)
			if !nacked {
				break
			}
			if at, ok := t.settledAt[before.Offset]; !ok || at > d.at {
				j.violation(RuleOrder, j.about(before.ID), "%v was delivered to member %d before %v, which was nacked", d.ID, d.member, before.ID)
			}
		}
	}
}

// slots: after a drain has begun, no more handlers begin than had been handed their records before: those had slots.
func (j *judge) slots(t *term) {
	if t.draining == 0 {
		return
	}
	slots := j.maxInFlight()
	for _, d := range t.deliveries {
		switch {
		case d.at > t.draining:
			if slots--; slots < 0 {
				j.violation(RuleDrain, j.about(d.ID), "%v was handed out by member %d, whose partition drained: no slot was free when that began", d.ID, d.member)
				return
			}
		case d.end > t.draining:
			slots--
		}
	}
}

// commits: they only rise, and pass nothing that is not settled, in this term or, by a mark, in one before.
func (j *judge) commits(before []*term, t *term) {
	if j.Policy == ackpolicy.AckFirst { // it is acked before there is anything to see
		return
	}
	all := t.commits
	if t.released && t.how.Clean {
		all = append(slices.Clone(all), Entry{At: t.to, ID: ID{t.partition, t.watermark}})
	}
	slices.SortStableFunc(all, func(a, b Entry) int { return int(a.At - b.At) })
	delivered := map[int64]bool{}
	for _, d := range t.deliveries {
		delivered[d.Offset] = true
	}
	settled := func(offset, at int64) bool {
		if delivered[offset] {
			since, ok := t.settledAt[offset]
			return ok && since <= at
		}
		return slices.ContainsFunc(before, func(b *term) bool {
			since, ok := b.settledAt[offset]
			return ok && since < t.from
		})
	}
	next, last := t.start, int64(-1)
	for _, e := range all {
		if e.Offset < last {
			j.violation(RuleCommit, j.around(t), "member %d committed partition %d to %d, and %d before", t.member, t.partition, e.Offset, last)
		}
		last = e.Offset
		for ; next < e.Offset; next++ {
			if !settled(next, e.At) {
				id := ID{t.partition, next}
				j.violation(RuleCommit, j.about(id), "%v was not settled when member %d committed %d", id, t.member, e.Offset)
			}
		}
	}
}

// succession: one owner after another, each from where the last one ended.
func (j *judge) succession(before []*term, t *term) {
	before = slices.DeleteFunc(slices.Clone(before), func(b *term) bool { return b.stale })
	if t.stale || len(before) == 0 {
		return
	}
	last := before[len(before)-1]
	switch {
	case !last.lost && last.to > t.from:
		j.violation(RuleOwners, j.around(t), "%v began before %v had ended", t, last)
	case last.released && last.how.Clean && t.start < last.watermark && last.to < t.from:
		j.violation(RuleCommit, j.around(t), "%v begins before the %d that the last one stored", t, last.watermark)
	}
	// What somebody saw stored stays stored.
	for _, b := range before[max(0, len(before)-3):] {
		for _, e := range b.commits {
			if e.At < t.from && e.Offset > t.start {
				j.violation(RuleCommit, j.around(t), "%v begins though member %d had committed %d", t, b.member, e.Offset)
				return
			}
		}
	}
}

// overtaken: no record comes after a later one of its lane was settled by an owner that ended well.
func (j *judge) overtaken(terms []*term) {
	high := map[string]ID{} // settled, by lane
	settled := map[ID]bool{}
	for _, t := range terms {
		for _, d := range t.deliveries {
			lane := j.lane(d.ID)
			if later, ok := high[lane]; lane != "" && ok && later.Offset > d.Offset && !settled[d.ID] {
				j.violation(RuleOrder, j.about(d.ID), "%v was delivered to member %d after %v of its lane had been settled by an owner before", d.ID, d.member, later)
				settled[d.ID] = true
			}
		}
		for offset := range t.settledAt {
			id := ID{t.partition, offset}
			settled[id] = true
			if lane := j.lane(id); !t.lost && high[lane].Offset <= offset {
				high[lane] = id
			}
		}
	}
}
