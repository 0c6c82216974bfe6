package chaos

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// ID is a record of the run's topic.
type ID struct {
	Partition int32
	Offset    int64
}

func (id ID) String() string { return fmt.Sprintf("%d/%d", id.Partition, id.Offset) }

// MarshalText has an ID be a key in JSON.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(text []byte) error {
	_, err := fmt.Sscanf(string(text), "%d/%d", &id.Partition, &id.Offset)
	return err
}

// Parent is the member number of what the test's own process writes about the run as a whole.
const Parent = -1

// Kinds of entries. A member writes what it is about to do before it does it, and what was done to it afterwards: so
// nothing that can be seen from outside happens before its entry, or without one.
const (
	// of the test, about a member; the detail is the length of what begins
	Started = "started"
	Killed  = "killed" // SIGKILL, and it is gone
	Exited  = "exited" // the detail is how
	Stopped = "stopped"
	Resumed = "resumed"
	Cut     = "cut"
	Stalled = "stalled"
	Slowed  = "slowed"
	Healed  = "healed"
	Closing = "closing"
	// of anybody: this process, or the whole machine, stood still for a good part of a session's timeout
	Starved = "starved"
	// of the test, about the brokers: what is done to them begins, and has ended; the detail is what
	Broken   = "broken"
	Repaired = "repaired"
	// of the test, about a record
	Produced = "produced"
	// of a member, about a partition
	Assigned  = "assigned"  // the offset is where it starts
	Committed = "committed" // the offset is stored
	Fenced    = "fenced"    // a commit of the offset was refused for good
	Draining  = "draining"  // the drain has begun; offset and attempt are those of a delivery of that assignment
	Revoked   = "revoked"   // the offset is the watermark, the detail how it ended
	// of a member, about a delivery
	Delivered    = "delivered"
	Done         = "done"     // the handler is about to return; the detail is what that does to the record
	Call         = "call"     // a verb is about to be called; the detail is which
	Returned     = "returned" // from the verb; the detail is "verb true" or "verb false"
	Settled      = "settled"
	DeadLettered = "dead_lettered" // the letter is stored
	Unconfirmed  = "unconfirmed"
	Unpublished  = "unpublished" // the output was refused; the detail is why
)

// Entry is a line of a ledger.
type Entry struct {
	At     int64 // Unix nanoseconds
	Member int
	Kind   string
	ID
	Attempt int
	Detail  string
}

func (e Entry) String() string {
	return fmt.Sprintf("%d %d %s %d %d %d %s", e.At, e.Member, e.Kind, e.Partition, e.Offset, e.Attempt, e.Detail)
}

// Ledger is an append-only file of entries, one a process. One system call writes a line, so what was written outlives
// the process, whatever ends it.
type Ledger struct {
	file   *os.File
	member int
}

// OpenLedger opens the ledger of a member in the directory.
func OpenLedger(dir string, member int) (*Ledger, error) {
	name := "parent.ledger"
	if member != Parent {
		name = fmt.Sprintf("member-%03d.ledger", member)
	}
	file, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &Ledger{file: file, member: member}, nil
}

// Write appends an entry of this process's member, now.
func (l *Ledger) Write(kind string, id ID, attempt int, detail string) {
	l.write(Entry{Member: l.member, Kind: kind, ID: id, Attempt: attempt, Detail: detail})
}

// About appends an entry about another member.
func (l *Ledger) About(member int, kind, detail string) {
	l.write(Entry{Member: member, Kind: kind, Detail: detail})
}

func (l *Ledger) write(e Entry) {
	e.At = time.Now().UnixNano()
	if _, err := l.file.WriteString(e.String() + "\n"); err != nil {
		panic(err) // without a ledger there is nothing to judge
	}
}

// Close closes the file.
func (l *Ledger) Close() error { return l.file.Close() }

// watch writes a Starved whenever this process gets no time for long. It ends with done.
func (l *Ledger) watch(done <-chan struct{}) {
	const interval = 50 * time.Millisecond
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for last := time.Now(); ; last = time.Now() {
		select {
		case <-ticker.C:
		case <-done:
			return
		}
		if late := time.Since(last) - interval; late > session/4 {
			l.Write(Starved, ID{}, 0, late.String())
		}
	}
}

// ReadLedgers reads all ledgers of a directory, in the order of time.
func ReadLedgers(dir string) ([]Entry, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.ledger"))
	if err != nil {
		return nil, err
	}
	var all []Entry
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		text = text[:bytes.LastIndexByte(text, '\n')+1]
		for line := range bytes.Lines(text) {
			e, err := parseEntry(line)
			if err != nil {
				return nil, fmt.Errorf("%s: %q: %w", path, line, err)
			}
			all = append(all, e)
		}
	}
	slices.SortStableFunc(all, func(a, b Entry) int { return cmp.Compare(a.At, b.At) })
	return all, nil
}

func parseEntry(line []byte) (e Entry, err error) {
	fields := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(" "), 7)
	if len(fields) != 7 {
		return e, fmt.Errorf("%d fields", len(fields))
	}
	number := func(i int) int64 {
		n, parseErr := strconv.ParseInt(string(fields[i]), 10, 64)
		if err == nil {
			err = parseErr
		}
		return n
	}
	e = Entry{
		At: number(0), Member: int(number(1)), Kind: string(fields[2]),
		ID:      ID{int32(number(3)), number(4)},
		Attempt: int(number(5)), Detail: string(fields[6]),
	}
	return e, err
}
