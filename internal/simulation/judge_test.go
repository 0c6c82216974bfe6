package simulation

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// judge holds what happens against docs/semantics.md, while it happens. Unlike the chaos suite's it
// sees the broker, too, and has one clock for all.
type judge struct {
	w          *world
	mu         sync.Mutex
	running    []*member
	started    int
	gone       map[*member]bool // killed: what it does counts no more
	closing    map[*member]bool
	book       [][]*record // by partition and offset
	terms      map[<-chan struct{}]*term
	lines      []line
	violations []violation
	topics     int           // 1; one more each time the topic is created again
	begun      map[int32]int // assignments, by partition, and those of them that ended well
	ended      map[int32]int
	requests   map[int16]int
	heartbeats map[string]time.Time // the last sign of life, by member id
	checked    kmsg.Request
	deliveries int
}

type violation struct {
	rule, what string
	part       int32
	offset     int64
}

type line struct {
	at     time.Duration
	member int
	part   int32
	offset int64
	text   string
}

// record is what is known of one.
type record struct {
	part    int32
	offset  int64
	lane    string
	settled string // how; "" if it is not. It may be so from then on
	never   string // why it must not be delivered again; "" if it may
	handled int    // handlers that have begun
	unsure  bool   // under ConfirmFirst: its owner was lost, or its commit's outcome is not known
	last    *delivery
	named   naming

	all      []*delivery // with transactions
	rejected bool        // a letter was made
	silent   bool        // it may have been acked without a delivery that had output
}

// naming is the first commit that says of a delivery that it is under way.
type naming struct {
	attempt int
	at      time.Duration
}

// delivery is one handing out of a record.
type delivery struct {
	*record
	term     *term
	attempt  int
	nacked   time.Duration // when; 0 if it is not
	due      time.Duration // after that
	done     bool
	stopped  bool // its context had ended by then
	reported bool // a clean end has reported it: its handler had returned

	serial int
	held   int  // how much it has published, and not thrown away
	acked  bool // it may be
}

func (j *judge) init(w *world) {
	j.w = w
	j.gone, j.closing, j.terms = map[*member]bool{}, map[*member]bool{}, map[<-chan struct{}]*term{}
	j.begun, j.ended = map[int32]int{}, map[int32]int{}
	j.requests, j.heartbeats = map[int16]int{}, map[string]time.Time{}
	j.newTopic()
}

// newTopic opens a new book, for a topic that was created.
func (j *judge) newTopic() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.topics++
	j.book = nil
	for part := range j.w.partitions {
		var records []*record
		for offset := range int64(j.w.records) {
			r := &record{part: part, offset: offset, lane: j.w.lane(part, offset)}
			if r.lane == "" {
				r.lane = fmt.Sprint("#", offset)
			}
			records = append(records, r)
		}
		j.book = append(j.book, records)
	}
}

func (j *judge) now() time.Duration { return time.Since(j.w.began) }

func (j *judge) noteLocked(m *member, part int32, offset int64, format string, args ...any) {
	id := 0
	if m != nil {
		id = m.id
		if j.gone[m] {
			format = "(dead) " + format
		}
	}
	j.lines = append(j.lines, line{j.now(), id, part, offset, fmt.Sprintf(format, args...)})
}

func (j *judge) note(m *member, part int32, offset int64, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.noteLocked(m, part, offset, format, args...)
}

func (j *judge) violateLocked(rule string, part int32, offset int64, format string, args ...any) {
	v := violation{rule, fmt.Sprintf(format, args...), part, offset}
	j.violations = append(j.violations, v)
	j.noteLocked(nil, part, offset, "VIOLATION %s: %s", rule, v.what)
}

func (j *judge) violate(rule string, part int32, offset int64, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.violateLocked(rule, part, offset, format, args...)
}

// leaves takes note that a member ends, from now on.
func (j *judge) leaves(m *member, killed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.running = slices.DeleteFunc(j.running, func(o *member) bool { return o == m })
	how := "closes"
	if killed {
		how = "is killed"
	}
	j.noteLocked(m, -1, -1, "%s", how)
	j.gone[m], j.closing[m] = killed, true
	if !killed {
		return
	}
	for _, t := range j.terms {
		if t.m == m && !t.over {
			t.lost()
		}
	}
}

func (j *judge) isClosing(m *member) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.closing[m]
}

// asked takes note of a request.
func (j *judge) asked(r kmsg.Request) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.requests[r.Key()]++
	switch r := r.(type) {
	case *kmsg.HeartbeatRequest:
		j.heartbeats[r.MemberID] = time.Now()
		j.noteLocked(nil, -1, -1, "heartbeat of %s, generation %d", r.MemberID, r.Generation)
	case *kmsg.JoinGroupRequest:
		j.heartbeats[r.MemberID] = time.Now()
		j.noteLocked(nil, -1, -1, "join of %s", r.MemberID)
	case *kmsg.SyncGroupRequest:
		j.heartbeats[r.MemberID] = time.Now()
		j.noteLocked(nil, -1, -1, "sync of %s, generation %d", r.MemberID, r.Generation)
	case *kmsg.LeaveGroupRequest:
		j.noteLocked(nil, -1, -1, "leave of %s %v", r.MemberID, r.Members)
	case *kmsg.OffsetCommitRequest:
		j.heartbeats[r.MemberID] = time.Now()
	}
}

func (j *judge) heard(member string) time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.heartbeats[member]
}

// commits judges what a member asks the broker to store: nothing that is not settled.
func (j *judge) commits(req kmsg.Request) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if req == j.checked {
		return false
	}
	j.checked = req
	c := asCommit(req)
	for _, t := range c.Topics {
		for _, p := range t.Partitions {
			text := ""
			if p.Metadata != nil {
				text = *p.Metadata
			}
			b := readBase(p.Partition, p.Offset, text)
			j.noteLocked(nil, p.Partition, p.Offset, "commit request of generation %d: %v", c.Generation, b)
			if j.topics > 1 {
				continue // it may be of an earlier topic
			}
			for _, r := range j.book[p.Partition] {
				if open, ok := b.openOf(r.offset); ok && open.Attempts != r.named.attempt {
					r.named = naming{open.Attempts, j.now()}
				}
				if r.settled == "" && b.covers(r.offset) {
					j.violateLocked("commit", r.part, r.offset, "%d/%d is not settled, and a commit says that it is: %v", r.part, r.offset, b)
					r.settled = "by a wrong commit"
				}
			}
		}
	}
	return false
}

// settled takes note of what the library says of a delivery.
func (j *judge) settled(m *member, e ackpolicy.SettledEvent) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.noteLocked(m, e.Partition, e.Offset, "attempt %d is %v: %v", e.Attempt, e.Status, e.Reason)
	if j.gone[m] {
		return
	}
	for _, t := range j.terms {
		d := t.delivered[e.Offset]
		if t.m != m || t.part != e.Partition || t.over || d == nil || d.attempt != e.Attempt {
			continue
		}
		switch e.Status {
		case ackpolicy.Acked:
			t.sure[e.Offset] = true
		case ackpolicy.Nacked:
			d.nacked = j.now()
			if max := j.w.maxDeliveries; max > 0 && e.Attempt >= max {
				j.violateLocked("attempt", d.part, d.offset, "%d/%d, attempt %d is nacked, MaxDeliveries is %d", d.part, d.offset, e.Attempt, max)
			}
		}
	}
}

// letterStored takes note that a letter is stored.
func (j *judge) letterStored(m *member, l ackpolicy.Letter, payload []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.noteLocked(m, l.Partition, l.Offset, "letter: %v", l.Reason)
	if r := j.recordOf(l.Partition, l.Offset, payload); !j.gone[m] && r.settled == "" {
		r.settled = "rejected"
	}
}

// allSettled reports whether nothing is left.
func (j *judge) allSettled() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, records := range j.book {
		if slices.ContainsFunc(records, func(r *record) bool { return r.settled == "" }) {
			return false
		}
	}
	return true
}

// atEnd judges what is left.
func (j *judge) atEnd(info *kfake.GroupInfo) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for part, records := range j.book {
		stored := int64(-1)
		if info != nil {
			if c, ok := info.Commits[topic][int32(part)]; ok {
				stored = c.Offset
			}
		}
		if stored != int64(len(records)) {
			j.violateLocked("stuck", int32(part), max(0, stored), "partition %d: %d is stored at the end, not %d", part, stored, len(records))
		}
		for _, r := range records {
			if j.w.policy == ackpolicy.AckFirst && r.handled == 0 && !r.unsure && j.topics == 1 {
				j.violateLocked("lost", r.part, r.offset, "%d/%d is acked under ConfirmFirst, its handler never began, and no assignment that had it was lost", r.part, r.offset)
			}
			if r.settled == "" {
				j.violateLocked("lost", r.part, r.offset, "%d/%d was never settled", r.part, r.offset)
			}
		}
	}
}

// life is all that happened to the record of a violation, and around it.
func (j *judge) life(v violation) string {
	var b strings.Builder
	for _, l := range j.lines {
		if v.part < 0 || l.part < 0 || l.part == v.part && (l.offset == v.offset || v.offset < 0 || l.offset < 0 || strings.HasPrefix(l.text, "commit") || strings.HasPrefix(l.text, "revoked") || strings.HasPrefix(l.text, "assigned")) {
			fmt.Fprintf(&b, "  %12v m%d %d/%d %s\n", l.at, l.member, l.part, l.offset, l.text)
		}
	}
	return b.String()
}
