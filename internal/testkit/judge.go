package testkit

import "fmt"

// Findings is what a Ledger shows.
type Findings struct {
	Records    int
	Lost       int      // records that were never handled
	Unfinished int      // those of them that were begun
	MaxMissing int      // those of them that one assignment of a partition had begun
	Twice      int      // first attempts at a record that had been begun before
	Replayed   int      // records that a later assignment of their partition began again
	MaxReplay  int      // by one
	Faults     []string // examples of all that is wrong
}

func (f *Findings) fault(format string, args ...any) {
	if len(f.Faults) < 20 {
		f.Faults = append(f.Faults, fmt.Sprintf(format, args...))
	}
}

// term is one assignment of a partition. A ledger without assignments has one for each partition.
type term struct {
	start   int64 // the offset that was stored when it began
	kills   int   // before it
	replays int
	missing int
	last    map[string]Entry // by lane, the record begun last
	running map[string]Entry // by lane, the record being handled
}

// Judge compares the ledger with what was produced. Records of a lane must neither overlap nor overtake each other in an
// assignment of their partition.
func (l *Ledger) Judge(ends []int64, lane func(RecordID) string) Findings {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := Findings{}
	kills := 0
	terms := make([][]*term, len(ends))
	begun := map[RecordID]int{} // the term that began it last, from 1
	ended := map[RecordID]bool{}
	for _, e := range l.entries {
		if e.Kind == Killed {
			kills++
			continue
		}
		all := terms[e.Partition]
		if e.Kind == Assigned || len(all) == 0 {
			now := &term{kills: kills, last: map[string]Entry{}, running: map[string]Entry{}}
			if e.Kind == Assigned {
				now.start = e.Offset
			}
			all = append(all, now)
			terms[e.Partition] = all
		}
		now := all[len(all)-1]
		switch e.Kind {
		case Began:
			now.begin(&f, e, lane(e.RecordID))
			before := begun[e.RecordID]
			if before > 0 && before < len(all) {
				f.Replayed++
				now.replays++
				f.MaxReplay = max(f.MaxReplay, now.replays)
			}
			if before > 0 && e.Attempt <= 1 {
				f.Twice++
			}
			begun[e.RecordID] = len(all)
		case Ended, Failed:
			delete(now.running, lane(e.RecordID))
			ended[e.RecordID] = ended[e.RecordID] || e.Kind == Ended
		case Refused:
			f.fault("%v: a late ack was refused", e.RecordID)
		}
	}
	for p, end := range ends {
		f.Records += int(end)
		for offset := range end {
			if id := (RecordID{int32(p), offset}); !ended[id] {
				f.miss(id, begun[id], terms[p], kills)
			}
		}
	}
	return f
}

// begin checks that a record neither overlaps nor overtakes one of its lane.
func (t *term) begin(f *Findings, e Entry, lane string) {
	if e.Offset < t.start {
		f.fault("%v: begun though %d was stored", e.RecordID, t.start)
	}
	if other, ok := t.running[lane]; ok {
		f.fault("%v: begun by member %d while %d runs at member %d", e.RecordID, e.Member, other.Offset, other.Member)
	}
	if last, ok := t.last[lane]; ok && (e.Offset < last.Offset || e.Offset == last.Offset && e.Attempt <= 1) {
		f.fault("%v: begun by member %d after member %d had begun %d", e.RecordID, e.Member, last.Member, last.Offset)
	}
	t.running[lane], t.last[lane] = e, e
}

// miss counts a record that was not handled to the assignment that began it, of which a kill must be the end. When one
// that nobody began was lost is not known: it was one of those that were in flight at some kill.
func (f *Findings) miss(id RecordID, begun int, terms []*term, kills int) {
	f.Lost++
	if begun == 0 {
		if kills == 0 {
			f.fault("%v: lost", id)
		}
		return
	}
	f.Unfinished++
	t := terms[begun-1]
	if begun == len(terms) || t.kills == terms[begun].kills {
		f.fault("%v: lost without a kill", id)
		return
	}
	t.missing++
	f.MaxMissing = max(f.MaxMissing, t.missing)
}
