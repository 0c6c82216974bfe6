package chaos

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Figures sum a run up.
type Figures struct {
	Records, Delivered          int
	Restarts, Kills, Losses     int           // what was done to members
	Lost                        int           // records
	Duplicates, Bound           int           // records delivered again after a term was lost, and what Guarantees allows
	MaxReplay                   int           // by one term
	Left                        int           // unsettled records that the next owner got
	Marked                      int           // records that a clean end left settled above its offset
	Unmarked                    int           // those of them that were delivered again, since their marks had no room
	LettersStored, ExtraLetters int           // in the dead letter topic
	OutputsStored, ExtraOutputs int           // in the output topic
	Unhandled                   int           // AckFirst: confirmed and never delivered
	Backward                    int           // stock: records handled after a later one of their key; else outputs behind a later one
	Faults                      int           // of the brokers
	Recovery                    time.Duration // the longest that a partition stood still
}

// Summary is a line about a run.
func (v Verdict) Summary(s Spec) string {
	order := v.Counts[RuleOrder]
	if s.Stock {
		order = v.Backward
	}
	line := fmt.Sprintf("%v records=%d delivered=%d restarts=%d kills=%d session-losses=%d lost=%d order-violations=%d duplicates=%d",
		s, v.Records, v.Delivered, v.Restarts, v.Kills, v.Losses, v.Lost, order, v.Duplicates)
	if !s.Stock {
		line += fmt.Sprintf(" (bound %d; at most %d a loss, of %d) left=%d marked=%d unmarked=%d letters=%d (%d extra)",
			v.Bound, v.MaxReplay, s.MaxUncommitted, v.Left, v.Marked, v.Unmarked, v.LettersStored, v.ExtraLetters)
		if v.Unhandled > 0 {
			line += fmt.Sprintf(" confirmed-not-handled=%d", v.Unhandled)
		}
	}
	if s.Output != "" {
		line += fmt.Sprintf(" outputs=%d (%d extra, %d out of order) broker-faults=%d open-transactions=%d",
			v.OutputsStored, v.ExtraOutputs, v.Backward, v.Faults, v.Counts[RuleOpen])
	}
	line += fmt.Sprintf(" longest-standstill=%.1fs", v.Recovery.Seconds())
	if !s.Stock {
		var counts []string
		for _, rule := range slices.Sorted(maps.Keys(v.Counts)) {
			counts = append(counts, fmt.Sprintf("%s:%d", rule, v.Counts[rule]))
		}
		line += fmt.Sprintf(" violations=[%s]", strings.Join(counts, " "))
	}
	return line
}

// count takes the figures that need no judgement.
func (j *judge) count() {
	active := make([]int64, len(j.Ends)) // by partition, since when nothing has happened
	for _, e := range j.Entries {
		switch e.Kind {
		case Produced:
			j.Records++
		case Closing:
			j.Restarts++
		case Killed:
			j.Kills++
		case Broken:
			j.Faults++
		}
		if e.Kind == Delivered || e.Kind == Done {
			if e.Kind == Delivered {
				j.Delivered++
			}
			if since := active[e.Partition]; since > 0 {
				j.Recovery = max(j.Recovery, time.Duration(e.At-since))
			}
			active[e.Partition] = e.At
		}
	}
	for _, d := range j.disturbed {
		if d.loses && d.to > d.from {
			j.Losses++
		}
	}
}

func sortedIDs[V any](m map[ID]V) []ID { return slices.SortedFunc(maps.Keys(m), compareIDs) }

const (
	lifeMargin = 2 * time.Second
	lifeLines  = 80
)

// life is what the ledger has about a record, its partition meanwhile, and those who had it.
func (j *judge) life(id ID) string {
	from, to := int64(never), int64(0)
	members := map[int]bool{}
	for _, e := range j.Entries {
		if e.ID == id && ofRecord(e) {
			from, to = min(from, e.At), max(to, e.At)
			members[e.Member] = true
		}
	}
	return j.tell(from, to, func(e Entry) bool {
		switch {
		case ofRecord(e):
			return e.ID == id
		case ofPartition(e):
			return e.Partition == id.Partition && (e.Kind != Committed || e.Offset > id.Offset-20 && e.Offset < id.Offset+20)
		}
		return members[e.Member]
	})
}

// lifeOfTerm is what the ledger has about a partition, and its member, around the end of a term.
func (j *judge) lifeOfTerm(t *term) string {
	end := t.to
	if end == never {
		end = t.from
	}
	return j.tell(max(t.from, end-int64(5*time.Second)), end, func(e Entry) bool {
		switch {
		case ofRecord(e):
			return false
		case ofPartition(e):
			return e.Partition == t.partition
		}
		return true
	})
}

func ofRecord(e Entry) bool {
	switch e.Kind {
	case Produced, Delivered, Done, Call, Returned, Settled, DeadLettered, Unconfirmed:
		return true
	}
	return false
}

func ofPartition(e Entry) bool {
	switch e.Kind {
	case Assigned, Committed, Fenced, Draining, Revoked:
		return true
	}
	return false
}

// tell prints the entries that are asked for, from a little before until a little after.
func (j *judge) tell(from, to int64, wanted func(Entry) bool) string {
	var lines []string
	began := j.Entries[0].At
	for _, e := range j.Entries {
		if e.At < from-int64(lifeMargin) || e.At > to+int64(lifeMargin) || !wanted(e) {
			continue
		}
		who := fmt.Sprintf("member %d", e.Member)
		if e.Member == Parent {
			who = "test"
		}
		line := fmt.Sprintf("  %8.3fs %-10s %-11s", time.Duration(e.At-began).Seconds(), who, e.Kind)
		if ofRecord(e) || ofPartition(e) {
			line += " " + e.ID.String()
		}
		line += strings.Repeat(fmt.Sprintf(" #%d", e.Attempt), cmp.Compare(e.Attempt, 0))
		lines = append(lines, strings.TrimRight(line+" "+e.Detail, " "))
	}
	if cut := len(lines) - lifeLines; cut > 0 {
		lines = slices.Replace(lines, lifeLines/2, lifeLines/2+cut, fmt.Sprintf("  ... %d lines ...", cut))
	}
	return strings.Join(lines, "\n")
}
