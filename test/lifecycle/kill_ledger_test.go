package lifecycle_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// entry is a line of a ledger that survives its writer.
type entry struct {
	kind      string // assigned (offset: the start), start, end, fail (the handler's), refused (a late ack), kill
	partition int32
	offset    int64
	attempt   int
}

// record is a ledger so far.
type record struct {
	lines           []entry
	begun, finished int
}

func (r record) open() int { return r.begun - r.finished }

// tail reads a ledger that grows.
type tail struct {
	path string
	at   int64
	so   record
}

func (l *tail) read() (record, error) {
	file, err := os.Open(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l.so, nil
	} else if err != nil {
		return l.so, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return l.so, err
	}
	text := make([]byte, info.Size()-l.at)
	if _, err := file.ReadAt(text, l.at); err != nil {
		return l.so, err
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	l.at += int64(len(text))
	for line := range bytes.Lines(text) {
		var e entry
		if _, err := fmt.Sscan(string(line), &e.kind, &e.partition, &e.offset, &e.attempt); err != nil {
			return l.so, fmt.Errorf("%q: %w", line, err)
		}
		l.so.lines = append(l.so.lines, e)
		switch e.kind {
		case "start":
			l.so.begun++
		case "end", "fail":
			l.so.finished++
		}
	}
	return l.so, nil
}

// appendLine writes a line that its writer could not.
func appendLine(path, kind string) error {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(file, kind, 0, 0, 0)
	return errors.Join(err, file.Close())
}

// crashFindings is what the ledger of a consumer that was killed tells.
type crashFindings struct {
	testkit.Findings
	replayed   int // records that were started again by a later assignment of their partition
	maxReplay  int // by one
	unfinished int // started, and never finished
	unstarted  int // never started
	maxMissing int // of those that were started, in one assignment
	kills      int
	partitions int
}

func (f crashFindings) String() string {
	return fmt.Sprintf("%d records, started again %d, at most %d a kill and partition; lost %d (%d of them begun), at most %d a kill and partition",
		f.Records, f.replayed, f.maxReplay, f.Lost, f.unfinished, f.maxMissing)
}

// term is one assignment of a partition.
type term struct {
	start   int64 // the offset that was stored when it began
	process int
	replays int
	missing int
	last    map[int64]int64 // by lane, the record begun last
	open    map[int64]int64 // by lane, the record being handled
}

// judgeCrashes compares the ledger with what was produced. A partition's assignments hold its events apart.
func judgeCrashes(lines []entry, ends []int64, spec killSpec) crashFindings {
	f := crashFindings{partitions: len(ends)}
	terms := make([][]*term, len(ends))
	starts, finished := map[testkit.RecordID]int{}, map[testkit.RecordID]bool{} // starts: the assignment that began it last, from 1
	process := 0
	for _, e := range lines {
		id, lane := testkit.RecordID{Partition: e.partition, Offset: e.offset}, e.offset%spec.lanes()
		if e.kind == "kill" {
			process++
			f.kills++
			continue
		}
		if e.kind == "assigned" {
			terms[e.partition] = append(terms[e.partition], &term{
				start: e.offset, process: process, last: map[int64]int64{}, open: map[int64]int64{},
			})
			continue
		}
		now := terms[e.partition][len(terms[e.partition])-1]
		switch e.kind {
		case "start":
			now.begin(&f, e, lane)
			if before := starts[id]; before > 0 && before < len(terms[e.partition]) {
				f.replayed++
				now.replays++
				f.maxReplay = max(f.maxReplay, now.replays)
			}
			if starts[id] > 0 && e.attempt == 1 {
				f.Twice++
			}
			starts[id] = len(terms[e.partition])
		case "end", "fail":
			delete(now.open, lane)
			finished[id] = finished[id] || e.kind == "end" || spec.Policy != ackpolicy.NackOnError
		case "refused":
			f.Fault("%d/%d: a late ack was refused", e.partition, e.offset)
		}
	}
	for p, end := range ends {
		f.Records += int(end)
		for offset := range end {
			if id := (testkit.RecordID{Partition: int32(p), Offset: offset}); !finished[id] {
				f.miss(id, starts[id], terms[p])
			}
		}
	}
	return f
}

// begin checks that a record neither overlaps nor overtakes one of its lane.
func (t *term) begin(f *crashFindings, e entry, lane int64) {
	if e.offset < t.start {
		f.Fault("%d/%d: started though %d was stored", e.partition, e.offset, t.start)
	}
	if other, open := t.open[lane]; open {
		f.Fault("%d/%d: started while %d runs", e.partition, e.offset, other)
	}
	if last, ok := t.last[lane]; ok && (e.offset < last || (e.offset == last && e.attempt == 1)) {
		f.Fault("%d/%d: started after %d", e.partition, e.offset, last)
	}
	t.open[lane], t.last[lane] = e.offset, e.offset
}

// miss counts a record that was not finished to the assignment that began it, of which a kill must be the end. When
// one that nobody began was lost is not known: it was one of those that were in flight at some kill.
func (f *crashFindings) miss(id testkit.RecordID, started int, terms []*term) {
	f.Lost++
	if started == 0 {
		f.unstarted++
		return
	}
	f.unfinished++
	t := terms[started-1]
	if started == len(terms) || t.process == terms[started].process {
		f.Fault("%d/%d: lost without a kill", id.Partition, id.Offset)
		return
	}
	t.missing++
	f.maxMissing = max(f.maxMissing, t.missing)
}

func (f *crashFindings) wantAtLeastOnce(t *testing.T, bound int) {
	t.Helper()
	if f.Lost > 0 {
		t.Errorf("%d of %d records lost", f.Lost, f.Records)
	}
	if f.maxReplay > bound {
		t.Errorf("%d records of a partition started again after a kill; Guarantees says at most %d", f.maxReplay, bound)
	}
}

// wantAtMostOnce allows each kill to lose what was confirmed and not finished: what ran, or was about to.
func (f *crashFindings) wantAtMostOnce(t *testing.T, spec killSpec) {
	t.Helper()
	if f.Twice > 0 || f.replayed > 0 {
		t.Errorf("%d of %d records started twice", max(f.Twice, f.replayed), f.Records)
	}
	inFlight := spec.maxInFlight()
	if f.maxMissing > inFlight {
		t.Errorf("a kill lost %d records of a partition; at most %d were in flight", f.maxMissing, inFlight)
	}
	if bound := f.kills * f.partitions * inFlight; f.Lost > bound {
		t.Errorf("%d kills lost %d records; at most %d were in flight", f.kills, f.Lost, bound)
	}
}
