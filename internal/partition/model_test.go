package partition

import (
	"slices"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// model is the naive truth: every record of the log from the start of an assignment on,
// in order, with its fate.
type model struct {
	order    Order
	max      int // handlers at once
	bound    int // MaxUncommitted; 0: none
	recs     []*modelRec
	commit   int // records below are committed
	stored   int // from there on: those whose marks are
	admitted int
	now      int64
	stopped  bool
	paused   bool
	waiting  bool  // handlers wait for older records
	late     bool  // records were settled after their handlers had returned
	skipped  int64 // offsets below hold no record that is to come
	delays   bool  // modelRec.asks is honoured
	output   bool  // deliveries publish
	emitted  []put // in the order in which it is to be stored

	blocks []ledger.Block // that an earlier owner left, and that are not decided
	open   []Open
}

type modelRec struct {
	offset  int64
	key     string
	print   uint32
	attempt int
	fate    state
	dueAt   int64
	asks    int64       // when its first delivery is to be; 0: at once
	runs    []*modelRun // unfinished deliveries
	known   bool        // it was nacked, rejected or left pending, here or before
	doomed  error       // see Condemn
	before  bool        // an earlier owner settled it
}

type modelRun struct {
	d       *Delivery[*modelRec, any]
	rec     *modelRec
	attempt int
	status  Status
	done    bool
	aside   bool // its letter is refused for good
	held    []put
}

func (r *modelRec) marked() bool { return r.fate == settled || r.fate == confirming }

// first returns the first record of which that is not true.
func (m *model) first(is func(*modelRec) bool) int {
	if i := slices.IndexFunc(m.recs, func(r *modelRec) bool { return !is(r) }); i >= 0 {
		return i
	}
	return len(m.recs)
}

func (m *model) front() int { return m.first((*modelRec).marked) }

func (m *model) head() int {
	return m.first(func(r *modelRec) bool { return r.fate == settled })
}

func (m *model) watermark(start int64) int64 {
	if f := m.front(); f > 0 {
		start = m.recs[f-1].offset + 1
	}
	return max(start, m.skipped) // all that came before was settled then
}

func (m *model) sameLane(a, b *modelRec) bool {
	switch m.order {
	case ByPartition:
		return true
	case ByKey:
		return a.key != "" && a.key == b.key
	}
	return false
}

// admit says which records may be handed out as far as the bound, and the marks that are
// not decided, go.
func (m *model) admit() {
	end := m.first(func(r *modelRec) bool { return r.fate != unverified })
	for m.admitted < end && (m.bound == 0 || m.admitted-m.commit-m.stored < m.bound) {
		m.admitted++
	}
}

// blocked reports whether the bound holds a record back.
func (m *model) blocked() bool {
	return m.admitted < m.first(func(r *modelRec) bool { return r.fate != unverified })
}

// free reports whether a record may be handed out now, by the rules as they are
// written for users.
func (m *model) free(i int) bool {
	r := m.recs[i]
	if i >= m.admitted || r.fate != queued && !((r.fate.timed() || r.fate == due) && r.dueAt <= m.now) {
		return false
	}
	for j, o := range m.recs {
		switch {
		case j == i || !m.sameLane(o, r):
		case len(o.runs) > 0:
			return false
		case j < i && o.fate.waits(): // it goes first
			return false
		}
	}
	return len(r.runs) == 0
}

// waits reports whether a record is in its lane.
func (s state) waits() bool { return s == queued || s == due || s.timed() }

// heldUp returns the first record that waits in the lane of another one.
func (m *model) heldUp(r *modelRec) *modelRec {
	i := slices.IndexFunc(m.recs, func(o *modelRec) bool { return (o == r || m.sameLane(o, r)) && o.fate.waits() })
	return m.recs[i]
}

// ready says how many queued records have no other one before them that waits for its time.
func (m *model) ready() (n int) {
	for _, r := range m.recs[:m.admitted] {
		if r.fate == queued && m.heldUp(r).fate == queued {
			n++
		}
	}
	return n
}

// decide looks which blocks of marks are read to their end, with a record at offset.
func (m *model) decide(offset int64) {
	for len(m.blocks) > 0 && m.blocks[0].End() <= offset+1 {
		b := m.blocks[0]
		m.blocks = m.blocks[1:]
		sum, all := uint32(0), []*modelRec{}
		for _, r := range m.recs {
			if _, marked := ledger.Marked([]ledger.Block{b}, r.offset); marked {
				sum += r.print
				all = append(all, r)
			}
		}
		for _, r := range all {
			r.doubt()
			if sum == b.Sum {
				r.fate = settled
				m.stored++
			}
		}
	}
}

// doubt makes a record be delivered that an earlier owner had settled.
func (r *modelRec) doubt() {
	if r.fate = queued; r.dueAt > 0 {
		r.fate = delayed
	}
}

// inherit gives a record that comes what an earlier owner left of it.
func (m *model) inherit(r *modelRec) {
	for _, o := range m.open {
		if o.Offset == r.offset && o.Check == uint16(r.print) {
			r.attempt, r.known, r.doomed, r.fate, r.dueAt = o.Attempts, true, o.Rejected, queued, 0
			if o.DueAt > 0 {
				r.fate, r.dueAt = parked, o.DueAt
			}
		}
	}
	m.open = slices.DeleteFunc(m.open, func(o Open) bool { return o.Offset <= r.offset })
	m.decide(r.offset - 1)
	if _, marked := ledger.Marked(m.blocks[:min(1, len(m.blocks))], r.offset); marked {
		r.fate, r.known = unverified, true
	}
	m.decide(r.offset)
}

// keyless records are lanes of their own, so a model record without a key has key "".
func keyOf(r *modelRec) []byte {
	if r.key == "" {
		return nil
	}
	return []byte(r.key)
}

// dueNow ends the delay of a record.
func (m *model) dueNow(r *modelRec) {
	r.fate, r.dueAt = due, m.now
	if slices.Index(m.recs, r) >= m.admitted {
		r.fate, r.dueAt = queued, 0
	}
}
