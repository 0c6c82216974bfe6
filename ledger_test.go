package ackpolicy_test

import (
	"fmt"
	"sync"
)

// ledger is what the handlers of a fleet did, in the order in which they did it.
type ledger struct {
	mu     sync.Mutex
	events []event
}

type event struct {
	member    int
	partition int32
	offset    int64
	end       bool
}

func (l *ledger) add(e event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// size is the number of events so far.
func (l *ledger) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.events)
}

// partitions counts those of which a record was started.
func (l *ledger) partitions() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[int32]bool{}
	for _, e := range l.events {
		seen[e.partition] = true
	}
	return len(seen)
}

type recordID struct {
	partition int32
	offset    int64
}

// findings is what a ledger tells.
type findings struct {
	records, lost, twice int
	faults               []string // examples of all that is wrong
}

func (f *findings) fault(format string, args ...any) {
	if len(f.faults) < 20 {
		f.faults = append(f.faults, fmt.Sprintf(format, args...))
	}
}

// judge compares the ledger with what was produced. Records of the same lane must not overlap, nor overtake each other.
func (l *ledger) judge(ends []int64, lane func(partition int32, offset int64) string) findings {
	l.mu.Lock()
	defer l.mu.Unlock()
	var f findings
	starts := map[recordID][]int{} // the members
	ended := map[recordID]bool{}
	running, last := map[string]*event{}, map[string]int64{}
	for i, e := range l.events {
		id, lane := recordID{e.partition, e.offset}, lane(e.partition, e.offset)
		if e.end {
			ended[id] = true
			delete(running, lane)
			continue
		}
		if starts[id] = append(starts[id], e.member); len(starts[id]) > 1 {
			f.twice++
			f.fault("%d/%d: started by members %v", e.partition, e.offset, starts[id])
		} else if before, ok := last[lane]; ok && e.offset < before {
			f.fault("%d/%d: started by member %d after %d of its lane", e.partition, e.offset, e.member, before)
		}
		if r := running[lane]; r != nil {
			f.fault("%d/%d: started by member %d while %d of its lane runs at member %d", e.partition, e.offset, e.member, r.offset, r.member)
		}
		running[lane], last[lane] = &l.events[i], e.offset
	}
	for p, end := range ends {
		f.records += int(end)
		for offset := range end {
			if !ended[recordID{int32(p), offset}] {
				f.lost++
				f.fault("%d/%d: lost", p, offset)
			}
		}
	}
	return f
}

// done tells whether every record has been handled.
func (l *ledger) done(ends []int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[recordID]bool{}
	for _, e := range l.events {
		if e.end {
			seen[recordID{e.partition, e.offset}] = true
		}
	}
	want := 0
	for _, end := range ends {
		want += int(end)
	}
	return len(seen) == want
}
