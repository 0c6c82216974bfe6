package testkit

import (
	"bufio"
	"fmt"
	"io"
	"sync"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Ledger is what the handlers of a group did, in the order in which they did it.
type Ledger struct {
	mu      sync.Mutex
	entries []Entry
	count   map[Kind]int
}

// Entry is a line of a Ledger.
type Entry struct {
	Kind   Kind
	Member int
	RecordID
	Attempt int // 0: each start of a record is a first one
	Detail  string
}

// Kind says what an Entry is about.
type Kind string

const (
	Assigned Kind = "assigned" // a partition; Offset is where it starts
	Began    Kind = "began"    // a handler
	Ended    Kind = "ended"    // a handler, for good
	Failed   Kind = "failed"   // a handler, whose record comes again
	Refused  Kind = "refused"  // a late ack
	Stored   Kind = "stored"   // a letter, whose Detail is the reason
	Killed   Kind = "killed"   // the member
)

// RecordID is a record of a topic.
type RecordID struct {
	Partition int32
	Offset    int64
}

func (id RecordID) String() string { return fmt.Sprintf("%d/%d", id.Partition, id.Offset) }

// EntryOf is about a delivery.
func EntryOf(kind Kind, d *ackpolicy.Delivery) Entry {
	return Entry{Kind: kind, RecordID: RecordID{d.Partition(), d.Offset()}, Attempt: d.Attempt()}
}

const entryFormat = "%s %d %d %d %d %q\n"

func (e Entry) write(w io.Writer) error {
	_, err := fmt.Fprintf(w, entryFormat, e.Kind, e.Member, e.Partition, e.Offset, e.Attempt, e.Detail)
	return err
}

// read appends what another process writes, until its end, which may be amid a line.
func (l *Ledger) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return nil
		}
		var e Entry
		if _, err := fmt.Sscanf(line, entryFormat, &e.Kind, &e.Member, &e.Partition, &e.Offset, &e.Attempt, &e.Detail); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		l.Add(e)
	}
}

// Add appends an entry.
func (l *Ledger) Add(e Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
	if l.count == nil {
		l.count = map[Kind]int{}
	}
	l.count[e.Kind]++
}

// Handle appends the start of a handler, and returns a function that appends its end.
func (l *Ledger) Handle(member int, partition int32, offset int64) (ended func()) {
	e := Entry{Kind: Began, Member: member, RecordID: RecordID{partition, offset}}
	l.Add(e)
	e.Kind = Ended
	return func() { l.Add(e) }
}

// Entries returns those so far of the kinds.
func (l *Ledger) Entries(kinds ...Kind) (entries []Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		for _, kind := range kinds {
			if e.Kind == kind {
				entries = append(entries, e)
			}
		}
	}
	return entries
}

// Count returns how many entries of the kinds there are so far.
func (l *Ledger) Count(kinds ...Kind) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, kind := range kinds {
		n += l.count[kind]
	}
	return n
}

// Running returns how many handlers have begun and neither ended nor failed.
func (l *Ledger) Running() int { return l.Count(Began) - l.Count(Ended, Failed) }

// Partitions returns how many partitions have had a record.
func (l *Ledger) Partitions() int {
	seen := map[int32]bool{}
	for _, e := range l.Entries(Began) {
		seen[e.Partition] = true
	}
	return len(seen)
}

// Done reports whether every record has been handled.
func (l *Ledger) Done(ends []int64) bool {
	want := 0
	for _, end := range ends {
		want += int(end)
	}
	if l.Count(Ended) < want {
		return false
	}
	seen := map[RecordID]bool{}
	for _, e := range l.Entries(Ended) {
		seen[e.RecordID] = true
	}
	return len(seen) == want
}
