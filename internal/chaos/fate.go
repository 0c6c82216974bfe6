package chaos

import (
	"fmt"
	"slices"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// fate: every record is settled for good; under AckFirst each is delivered at most once.
func (j *judge) fate(id ID) {
	deliveries := j.records[id]
	if j.Policy == ackpolicy.AckFirst {
		j.atMostOnce(id, deliveries)
		return
	}
	for _, d := range deliveries {
		if _, ok := d.settledAt[id.Offset]; ok {
			return
		}
	}
	j.Lost++
	j.violation(RuleLost, j.about(id), "%v was never settled for good", id)
}

// atMostOnce: what is not delivered at all was confirmed in an assignment that was lost.
func (j *judge) atMostOnce(id ID, deliveries []*delivery) {
	if len(deliveries) > 1 {
		j.violation(RuleAtMost, j.about(id), "%v was delivered %d times", id, len(deliveries))
	}
	if len(deliveries) > 0 {
		return
	}
	// It was confirmed by the offset of the term that passed it, or by a mark of that one or of an earlier one.
	terms := j.byPartition[id.Partition]
	if i := slices.IndexFunc(terms, func(t *term) bool { return t.start > id.Offset }); i >= 0 {
		terms = terms[:i]
	} else if id.Offset >= j.Stored[id.Partition] {
		terms = nil
	}
	how := "was never delivered"
	for _, t := range slices.Backward(terms) {
		switch {
		case !t.lost:
		case len(t.replayed) < j.maxInFlight():
			j.Unhandled++
			t.replayed[id.Offset] = true
			return
		default:
			how = fmt.Sprintf("and %d more were confirmed by member %d and not handled", len(t.replayed), t.member)
		}
	}
	j.Lost++
	j.violation(RuleLost, j.about(id), "%v %s", id, how)
}

// letter: a rejected record has one letter, and another one for each crash at most.
func (j *judge) letter(id ID) {
	rejected, acked := 0, false
	again := 0 // owners that may have stored it again: duplicates judges them
	for _, d := range j.records[id] {
		if _, ok := d.intends(reject); ok {
			rejected++
			_, settled := d.settledAt[id.Offset]
			if d.disturbed || d.lost || d.how.Unmarked > 0 || d.how.FirstLeft >= 0 && !settled || d.left() {
				again++
			}
		}
		if _, ok := d.intends(ack); ok {
			acked = true
		}
	}
	letters := j.Letters[id]
	j.LettersStored += letters
	switch {
	case rejected == 0 && letters > 0:
		j.violation(RuleLetter, j.about(id), "%v has %d letters and was never rejected", id, letters)
	case rejected > 0 && letters == 0 && !acked:
		j.violation(RuleLetter, j.about(id), "%v was rejected and has no letter", id)
	case letters > 1 && again == 0:
		j.violation(RuleLetter, j.about(id), "%v has %d letters", id, letters)
	}
	j.ExtraLetters += max(0, letters-1)
}

// duplicates: a settled record is delivered again by another owner only if its last one was lost, and then not if
// AckSync had reported that its ack is stored; or if the commit had no room for its mark, which the release counts.
func (j *judge) duplicates() {
	if j.Policy == ackpolicy.AckFirst {
		return
	}
	bound := map[*term]bool{}
	for _, id := range sortedIDs(j.records) {
		// Where one that has lost its session continues, the earlier owner is to blame.
		deliveries := slices.Clone(j.records[id])
		slices.SortStableFunc(deliveries, func(a, b *delivery) int { return int(a.from - b.from) })
		for i, d := range deliveries[1:] {
			last := deliveries[i]
			if d.term == last.term {
				continue
			}
			at, settled := last.settledAt[id.Offset]
			switch stored, ok := last.stored(); {
			case ok && stored < d.at:
				j.violation(RuleDuplicate, j.about(id), "%v was delivered again to member %d, and AckSync had reported to member %d that it is stored",
					id, d.member, last.member)
			case last.lost:
				j.Duplicates++
				if last.replayed[id.Offset] = true; len(last.replayed) > j.MaxUncommitted && !bound[last.term] {
					bound[last.term] = true
					j.violation(RuleDuplicate, j.around(last.term), "more than %d records of %v were delivered again", j.MaxUncommitted, last.term)
				}
			case !settled || at > d.at || last.left():
				j.Left++
			case j.excused(last.term, d.term):
				j.Unmarked++
			default:
				j.violation(RuleDuplicate, j.about(id), "%v was settled by member %d, which ended well, and was delivered again to member %d",
					id, last.member, d.member)
			}
		}
	}
	for _, terms := range j.byPartition {
		for _, t := range terms {
			if t.lost {
				j.Bound += j.MaxUncommitted
				j.MaxReplay = max(j.MaxReplay, len(t.replayed))
				continue
			}
			for offset := range t.settledAt {
				if offset >= t.watermark {
					j.Marked++
				}
			}
		}
	}
}

// excused reports whether the release of a term, or of one between it and the other, says that it had no room for more
// marks than were missed so far.
func (j *judge) excused(first, next *term) bool {
	terms := j.byPartition[first.partition]
	for _, t := range terms[slices.Index(terms, first):slices.Index(terms, next)] {
		if t.unmarked < t.how.Unmarked {
			t.unmarked++
			return true
		}
	}
	return false
}

// stock counts, for a subscriber that promises less.
func (j *judge) stock() {
	for p, end := range j.Ends {
		high := map[string]int64{}
		for offset := range end {
			id := ID{int32(p), offset}
			acked := 0
			for i, d := range j.records[id] {
				if d.verdict == ack {
					acked++
				}
				if i > 0 && j.records[id][i-1].verdict == ack {
					j.Duplicates++
				}
			}
			if acked == 0 {
				j.Lost++
			}
		}
		var all []*delivery
		for offset := range end {
			all = append(all, j.records[ID{int32(p), offset}]...)
		}
		slices.SortFunc(all, func(a, b *delivery) int { return int(a.at - b.at) })
		for _, d := range all {
			if lane := j.key(d.ID); d.verdict == ack {
				if high[lane] > d.Offset {
					j.Backward++
				}
				high[lane] = max(high[lane], d.Offset)
			}
		}
	}
}
