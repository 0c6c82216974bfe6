package chaos

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// Record is what a run leaves to be judged.
type Record struct {
	Spec
	Entries []Entry    // in the order of time
	Ends    []int64    // by partition: how many records were produced
	Stored  []int64    // the offset that the broker stores at the end; -1: none
	Letters map[ID]int // what the dead letter topic holds
	Outputs [][]ID     // what the output topic holds, by partition, in its order
	Open    []string   // transactions that do not end
	Aborted []string   // producers with more than one aborted transaction in a partition
}

const recordFile = "record.json" // without the entries

func (r *Record) save() error {
	rest := *r
	rest.Entries = nil
	text, err := json.Marshal(rest)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.Dir, recordFile), text, 0o600)
}

// Load reads the record of a run whose directory was kept.
func Load(dir string) (*Record, error) {
	text, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return nil, err
	}
	r := &Record{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, err
	}
	r.Entries, err = ReadLedgers(dir)
	return r, err
}

const never = math.MaxInt64

// howEnded is what a Revoked says.
type howEnded struct {
	Clean     bool // its last commit is stored
	TimedOut  bool
	FirstLeft int64 // -1: none
	Letters   int   // rejected records that were left, since their letters were not stored
	Unmarked  int   // settled records that come again, since their marks had no room
}

const howFormat = "clean=%t timedout=%t left=%d letters=%d unmarked=%d"

func (h howEnded) String() string {
	return fmt.Sprintf(howFormat, h.Clean, h.TimedOut, h.FirstLeft, h.Letters, h.Unmarked)
}

// term is one assignment of a partition to a member.
type term struct {
	partition  int32
	member     int
	start      int64 // the first offset
	from, to   int64 // to: when it was released, or its member had ended; else never
	released   bool  // to is a Revoked, which is how
	how        howEnded
	watermark  int64 // of the release
	killed     bool
	fenced     bool
	lost       bool  // it may end without its last commit: killed, out of the group, or without a network
	explained  bool  // something was done to the member, or to the group, that can have cost it that
	disturbed  bool  // that was done to this member
	stale      bool  // the member was out of the group before it knew that it had the partition
	draining   int64 // when the drain had begun, at the latest; 0: that is not known
	deliveries []*delivery
	commits    []Entry
	cumulative []*call
	settledAt  map[int64]int64 // when a record was about to be settled for good
	replayed   map[int64]bool  // records that were delivered again by others, since the term was lost
	unmarked   int             // settled records that were delivered again by others, since their marks had no room
}

func (t *term) String() string {
	return fmt.Sprintf("the assignment of partition %d to member %d from offset %d", t.partition, t.member, t.start)
}

// delivery is one handler's run.
type delivery struct {
	ID
	*term
	attempt  int
	at       int64
	end      int64  // when the handler was about to return, or its process was dead; else never
	verdict  string // of the handler's end
	calls    []*call
	settled  string // what the subscriber reports
	reported int64  // when it first reported so
	letterAt int64  // when its letter was stored; 0: never
}

// call is a call of a verb.
type call struct {
	*delivery
	verb     string
	at, back int64 // back: when it returned; else never
	result   bool
}

// intends returns when the delivery was about to be settled like that.
func (d *delivery) intends(verdict string) (at int64, ok bool) {
	for _, c := range d.calls {
		if c.back != never && !c.result && c.verb != ackSync { // refused; AckSync may have acked and not waited
			continue
		}
		if c.verb == verdict || (verdict == ack && (c.verb == ackSync || c.verb == ackCumulative)) {
			return c.at, true
		}
	}
	if d.verdict == verdict {
		return d.end, true
	}
	return 0, false
}

// stored returns when AckSync reported that the ack is stored.
func (d *delivery) stored() (at int64, ok bool) {
	for _, c := range d.calls {
		if c.verb == ackSync && c.result {
			return c.back, true
		}
	}
	return 0, false
}

// left reports whether the release says that it left the record: its drain was over just before the settlement, of
// which the ledger has the intention only.
func (d *delivery) left() bool {
	if !d.released || d.how.FirstLeft < 0 || d.how.FirstLeft > d.Offset {
		return false
	}
	if _, rejects := d.intends(reject); rejects {
		return d.how.Letters > 0
	}
	return d.how.TimedOut && d.settled == ""
}

// disturbance is something that was done to a member.
type disturbance struct {
	member   int // Parent: all
	from, to int64
	loses    bool // the session
}

// history is a record in order.
type history struct {
	*Record
	byPartition [][]*term
	records     map[ID][]*delivery
	closing     map[int]int64 // when a member was asked to end
	deaths      map[int]int64
	disturbed   []*disturbance
	killed      map[int]bool
}

func newHistory(r *Record) *history {
	h := &history{
		Record: r, byPartition: make([][]*term, len(r.Ends)), records: map[ID][]*delivery{},
		closing: map[int]int64{}, deaths: map[int]int64{}, killed: map[int]bool{},
	}
	h.readControl()
	h.readMembers()
	for _, terms := range h.byPartition {
		for i, t := range terms {
			h.closeTerm(t)
			if i == 0 {
				continue
			}
			// A member with a slow network may be taken for dead and not know it yet.
			if last := terms[i-1]; last.to > t.from && last.disturbed {
				last.lost = true
			}
		}
	}
	return h
}

// readControl reads what was done to members.
func (h *history) readControl() {
	open := map[int]*disturbance{}
	for _, e := range h.Entries {
		switch e.Kind {
		case Stopped, Cut, Stalled, Slowed:
			length, _ := time.ParseDuration(e.Detail)
			d := &disturbance{e.Member, e.At, never, e.Kind != Slowed && length >= session*2/3}
			open[e.Member] = d
			h.disturbed = append(h.disturbed, d)
		case Resumed, Healed, Repaired:
			if d := open[e.Member]; d != nil {
				d.to = e.At
				delete(open, e.Member)
			}
		case Broken:
			d := &disturbance{member: Parent, from: e.At, to: never}
			open[Parent] = d
			h.disturbed = append(h.disturbed, d)
		case Starved:
			h.disturbed = append(h.disturbed, &disturbance{member: Parent, from: e.At - int64(session), to: e.At})
		case Closing:
			h.closing[e.Member] = e.At
		case Killed:
			h.disturbed = append(h.disturbed, &disturbance{member: e.Member, from: e.At, to: e.At, loses: true})
			fallthrough
		case Exited:
			h.deaths[e.Member] = e.At
			h.killed[e.Member] = e.Kind == Killed
		}
	}
}

type termKey struct {
	member    int
	partition int32
}

type deliveryKey struct {
	member int
	ID
	attempt int
}

// readMembers makes terms and deliveries of what members wrote.
func (h *history) readMembers() {
	terms := map[termKey]*term{}
	latest := map[deliveryKey]*delivery{}
	early := map[termKey][]Entry{} // commits of a start, which come before the Assigned
	for _, e := range h.Entries {
		tk, dk := termKey{e.Member, e.Partition}, deliveryKey{e.Member, e.ID, e.Attempt}
		t, d := terms[tk], latest[dk]
		switch e.Kind {
		case Assigned:
			t = &term{
				partition: e.Partition, member: e.Member, start: e.Offset, from: e.At, to: never,
				commits: early[tk], settledAt: map[int64]int64{}, replayed: map[int64]bool{},
			}
			delete(early, tk)
			terms[tk] = t
			h.byPartition[e.Partition] = append(h.byPartition[e.Partition], t)
			continue
		case Committed:
			// The one that a release waited for may be reported after the release.
			if t == nil || (t.released && e.Offset != t.watermark) {
				early[tk] = append(early[tk], e)
				continue
			}
		}
		if t == nil && h.Stock {
			t = &term{partition: e.Partition, member: e.Member, to: never, settledAt: map[int64]int64{}}
			terms[tk] = t
		}
		if t == nil {
			continue
		}
		switch e.Kind {
		case Committed:
			t.commits = append(t.commits, e)
		case Fenced:
			t.fenced = true
		case Revoked:
			t.to, t.released, t.watermark = e.At, true, e.Offset
			_, _ = fmt.Sscanf(e.Detail, howFormat, &t.how.Clean, &t.how.TimedOut, &t.how.FirstLeft, &t.how.Letters, &t.how.Unmarked)
		case Delivered:
			d = &delivery{ID: e.ID, term: t, attempt: e.Attempt, at: e.At, end: never}
			latest[dk] = d
			t.deliveries = append(t.deliveries, d)
			h.records[e.ID] = append(h.records[e.ID], d)
		}
		if d == nil {
			continue
		}
		switch e.Kind {
		case Draining: // it may come late, in the member's next term
			d.draining = e.At
		case Done:
			d.end, d.verdict = e.At, e.Detail
		case Call:
			c := &call{delivery: d, verb: e.Detail, at: e.At, back: never}
			d.calls = append(d.calls, c)
			if c.verb == ackCumulative {
				t.cumulative = append(t.cumulative, c)
			}
		case Returned:
			c := d.calls[len(d.calls)-1]
			c.back, c.result = e.At, strings.HasSuffix(e.Detail, "true")
		case Settled:
			d.settled = e.Detail
			if d.reported == 0 {
				d.reported = e.At
			}
		}
	}
	h.readLetters()
}

// readLetters notes when letters were stored: a DeadLettered names no attempt.
func (h *history) readLetters() {
	for _, e := range h.Entries {
		if e.Kind != DeadLettered {
			continue
		}
		for _, d := range slices.Backward(h.records[e.ID]) {
			if _, rejects := d.intends(reject); rejects && d.member == e.Member && d.at < e.At {
				if d.letterAt == 0 {
					d.letterAt = e.At
				}
				break
			}
		}
	}
}

// closeTerm finds out how a term ended, and what was settled in it.
func (h *history) closeTerm(t *term) {
	death, dead := h.deaths[t.member]
	if !t.released && dead {
		t.to, t.killed = death, h.killed[t.member]
	}
	t.lost = !t.released || !t.how.Clean || t.fenced
	t.explained = t.killed
	for _, d := range h.disturbed {
		switch {
		case d.from > t.to:
		case d.member == t.member && t.from <= add(d.to, session): // it takes effect a little later, too
			t.explained, t.disturbed = true, true
			t.lost = t.lost || d.loses
			t.stale = t.stale || d.loses && d.from < t.from
		case d.member == Parent && t.from <= add(d.to, session):
			t.explained = true
		case d.loses && add(d.to, rebalance+session) >= t.to:
			t.explained = true // while the group waits for a member that is gone, it takes no commits
		}
	}
	for _, d := range t.deliveries {
		if dead && d.end > death {
			d.end = death
		}
		at, ok := d.intends(ack)
		if !ok {
			if _, ok = d.intends(reject); ok && h.letters() {
				at, ok = d.letterAt, d.letterAt > 0
			}
		}
		if h.Policy == ackpolicy.AckFirst && !h.Stock {
			at, ok = d.at, true
		}
		if ok {
			t.settle(d.Offset, at)
		}
	}
	for _, c := range t.cumulative {
		for _, d := range t.deliveries {
			if _, rejects := d.intends(reject); d.Offset <= c.Offset && d.end <= c.back && !rejects {
				t.settle(d.Offset, c.at)
			}
		}
	}
}

// settle takes note that a record was about to be settled; after the release it is not any more.
func (t *term) settle(offset, at int64) {
	if t.released && at > t.to {
		return
	}
	if before, ok := t.settledAt[offset]; !ok || at < before {
		t.settledAt[offset] = at
	}
}

func add(at int64, d time.Duration) int64 {
	if at == never {
		return never
	}
	return at + int64(d)
}
