package testkit

import (
	"fmt"
	"sync"
)

// Ledger is what the handlers of a fleet did, in the order in which they did it.
type Ledger struct {
	mu     sync.Mutex
	events []Event
}

// Event is the start or the end of a handler.
type Event struct {
	Member    int
	Partition int32
	Offset    int64
	End       bool
}

// Add appends an event.
func (l *Ledger) Add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// Size returns the number of events so far.
func (l *Ledger) Size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.events)
}

// Partitions counts those of which a record was started.
func (l *Ledger) Partitions() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[int32]bool{}
	for _, e := range l.events {
		seen[e.Partition] = true
	}
	return len(seen)
}

// RecordID is a record of a topic.
type RecordID struct {
	Partition int32
	Offset    int64
}

// Findings is what a ledger shows.
type Findings struct {
	Records, Lost, Twice int
	Faults               []string // examples of all that is wrong
}

// Fault adds an example.
func (f *Findings) Fault(format string, args ...any) {
	if len(f.Faults) < 20 {
		f.Faults = append(f.Faults, fmt.Sprintf(format, args...))
	}
}

// Judge compares the ledger with what was produced. Records of the same lane must not overlap, nor overtake each other.
func (l *Ledger) Judge(ends []int64, lane func(partition int32, offset int64) string) Findings {
	l.mu.Lock()
	defer l.mu.Unlock()
	var f Findings
	starts := map[RecordID][]int{} // the members
	ended := map[RecordID]bool{}
	running, last := map[string]*Event{}, map[string]int64{}
	for i, e := range l.events {
		id, lane := RecordID{e.Partition, e.Offset}, lane(e.Partition, e.Offset)
		if e.End {
			ended[id] = true
			delete(running, lane)
			continue
		}
		if starts[id] = append(starts[id], e.Member); len(starts[id]) > 1 {
			f.Twice++
			f.Fault("%d/%d: started by members %v", e.Partition, e.Offset, starts[id])
		} else if before, ok := last[lane]; ok && e.Offset < before {
			f.Fault("%d/%d: started by member %d after %d of its lane", e.Partition, e.Offset, e.Member, before)
		}
		if r := running[lane]; r != nil {
			f.Fault("%d/%d: started by member %d while %d of its lane runs at member %d", e.Partition, e.Offset, e.Member, r.Offset, r.Member)
		}
		running[lane], last[lane] = &l.events[i], e.Offset
	}
	for p, end := range ends {
		f.Records += int(end)
		for offset := range end {
			if !ended[RecordID{int32(p), offset}] {
				f.Lost++
				f.Fault("%d/%d: lost", p, offset)
			}
		}
	}
	return f
}

// Done reports whether every record has been handled.
func (l *Ledger) Done(ends []int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[RecordID]bool{}
	for _, e := range l.events {
		if e.End {
			seen[RecordID{e.Partition, e.Offset}] = true
		}
	}
	want := 0
	for _, end := range ends {
		want += int(end)
	}
	return len(seen) == want
}
