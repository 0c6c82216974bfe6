package partition

import (
	"fmt"
	"slices"
	"testing"

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

type harness struct {
	t     testing.TB
	m     *model
	p     *Partition[*modelRec, any]
	start int64
	awake int // slots that hold nothing and look
	slots int
	runs  []*modelRun // held by a slot
	old   []*modelRun // finished, may be settled late
	bytes *Bytes
	log   []string

	snap *Snapshot // the last that was stored; nil: none
	kept []bool
}

func (h *harness) failf(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), joinTail(h.log))
}

func joinTail(log []string) (s string) {
	for _, l := range log[max(0, len(log)-40):] {
		s += l + "\n"
	}
	return s
}

func (h *harness) logf(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

func (h *harness) work(w Work) {
	if w.Wake < 0 || w.Spawn < 0 {
		h.failf("negative work %+v", w)
	}
	h.awake += int(w.Wake + w.Spawn)
	h.slots += int(w.Spawn)
	if h.slots > h.m.max+1 {
		h.failf("%d slots started, %d allowed", h.slots, h.m.max+1)
	}
	if at, ok := h.p.Due(); w.Has(Timer) && ok && at <= h.m.now {
		h.work(h.p.Tick(h.m.now))
	}
}

// endSpare ends slots that were idle.
func (h *harness) endSpare() {
	n := h.p.Spare()
	if idle := h.slots - h.awake - len(h.runs); n < 0 || n > idle {
		h.failf("%d slots are spare, %d idle", n, idle)
	}
	h.slots -= n
}

// taken checks a record that was handed out.
func (h *harness) taken(d *Delivery[*modelRec, any]) {
	i := slices.IndexFunc(h.m.recs, func(r *modelRec) bool { return r.offset == d.Offset() })
	if d.Evicted() {
		if d.Record() != nil {
			h.failf("record %d was evicted and is there", d.Offset())
		}
		h.p.Restore(d, h.m.recs[i], false)
	}
	rec := d.Record()
	if rec != h.m.recs[i] {
		h.failf("offset %d came with record %v", d.Offset(), rec)
	}
	if h.m.paused {
		h.failf("record %d handed out of a paused partition", rec.offset)
	}
	if h.p.Condemned(d) != rec.doomed {
		h.failf("record %d: condemned %v, want %v", rec.offset, h.p.Condemned(d), rec.doomed)
	}
	if h.m.stopped {
		h.failf("record %d handed out of a stopped partition", rec.offset)
	}
	if !h.m.free(i) {
		h.failf("record %d (key %q, fate %d) handed out of turn", rec.offset, rec.key, rec.fate)
	}
	if n := len(h.runs); n >= h.m.max && !(n == h.m.max && h.m.waiting && i == h.m.head()) {
		h.failf("record %d handed out with %d of %d slots in use", rec.offset, n, h.m.max)
	}
	rec.attempt++
	if d.Attempt() != rec.attempt || d.Offset() != rec.offset {
		h.failf("record %d: attempt %d, want %d", rec.offset, d.Attempt(), rec.attempt)
	}
	rec.fate = inFlight
	run := &modelRun{d: d, rec: rec, attempt: rec.attempt}
	rec.runs = append(rec.runs, run)
	h.runs = append(h.runs, run)
	h.logf("take %d key %q attempt %d", rec.offset, rec.key, rec.attempt)
}

// lookAll lets every slot that is awake look for a record.
func (h *harness) lookAll() {
	for h.awake > 0 {
		h.awake--
		d := &Delivery[*modelRec, any]{}
		w, ok := h.p.Take(d)
		if ok {
			h.taken(d)
		}
		h.work(w)
	}
	h.idle()
}

// idle checks that nothing is left lying: with no slot looking, a record that
// may be handed out means that all slots are in use.
func (h *harness) idle() {
	if h.m.stopped || h.m.paused {
		return
	}
	for i, r := range h.m.recs {
		if r.fate.timed() && r.dueAt <= h.m.now {
			continue // its timer has not fired yet
		}
		if (len(h.runs) < h.m.max || len(h.runs) == h.m.max && h.m.waiting && i == h.m.head()) && h.m.free(i) {
			h.failf("record %d (fate %d) lies ready, %d of %d slots in use", r.offset, r.fate, len(h.runs), h.m.max)
		}
	}
}

func (h *harness) check() {
	h.m.admit()
	mark := h.p.Mark()
	if want := h.m.watermark(h.start); mark.Offset != want {
		h.failf("watermark %d, want %d", mark.Offset, want)
	}
	if int(mark.Seq) != h.m.front() {
		h.failf("front %d, want %d", mark.Seq, h.m.front())
	}
	if len(h.log)%8 == 0 { // it looks at all records
		h.overview()
	}
	if l := h.p.Load(); l.Unsettled != len(h.m.recs)-h.m.head() || l.Blocked != h.m.blocked() || l.Running != len(h.runs) {
		h.failf("load %+v, want %d unsettled, blocked %v, %d running", l, len(h.m.recs)-h.m.head(), h.m.blocked(), len(h.runs))
	}
	for _, run := range append(slices.Clone(h.runs), h.old...) {
		if r, ok := h.p.Record(run.d); ok && r != run.rec || !ok && r != nil {
			h.failf("record %d attempt %d: holds %v, %v", run.rec.offset, run.attempt, r, ok)
		} else if !ok && !run.done {
			h.failf("record %d was pushed out while its handler runs", run.rec.offset)
		} else if ok && run.done && run.status != Pending && (run.status != Rejected || run.rec.fate != rejecting) {
			h.failf("record %d attempt %d: settled, its delivery still holds the record", run.rec.offset, run.attempt)
		}
		if got := h.p.Status(run.d); got != run.status {
			h.failf("record %d attempt %d: status %d, want %d", run.rec.offset, run.attempt, got, run.status)
		}
	}
}

// hold publishes as a delivery, or throws away what it has published.
func (h *harness) hold(run *modelRun, b int) {
	if b%8 == 7 {
		h.logf("discard %d", run.rec.offset)
		if h.p.Discard(run.d); run.status == Pending {
			run.held = nil
		}
		return
	}
	o := put{run.rec.offset, run.attempt, len(run.held)}
	h.logf("hold %+v", o)
	held := h.p.Hold(run.d, []Output{o}, outputSize)
	if want := h.m.output && run.status == Pending; held != want {
		h.failf("record %d: held %v, want %v", run.rec.offset, held, want)
	}
	if held {
		run.held = append(run.held, o)
	}
}

const outputSize = 7

// letter makes the letter of a rejected delivery its output.
func (h *harness) letter(run *modelRun) {
	o := put{offset: run.rec.offset}
	want := h.m.output && run.status == Rejected && run.rec.fate == rejecting
	if held := h.p.HoldLetter(run.d, o, outputSize); held != want {
		h.failf("record %d: its letter is held: %v, want %v", run.rec.offset, held, want)
	}
	if want {
		run.held = []put{o}
	}
}

// emit makes the output of a settled record ready.
func (h *harness) emit(r *modelRec) {
	for _, run := range append(slices.Clone(h.runs), h.old...) {
		if run.rec == r {
			h.m.emitted, run.held = append(h.m.emitted, run.held...), nil
		}
	}
}

// outputBytes is how much is held.
func (h *harness) outputBytes() (n int64) {
	n = int64(len(h.m.emitted)) * outputSize
	for _, run := range append(slices.Clone(h.runs), h.old...) {
		n += int64(len(run.held)) * outputSize
	}
	return n
}

// snapshot checks what would be stored now, and returns it.
func (h *harness) snapshot() *Snapshot {
	h.t.Helper()
	s := h.p.Snapshot()
	if s.Mark != h.p.Mark() {
		h.failf("a snapshot of %+v at %+v", s.Mark, h.p.Mark())
	}
	var wantOpen []Open
	for _, r := range h.m.recs {
		block, marked := ledger.Marked(s.Blocks, r.offset)
		switch {
		case r.offset < s.Offset:
			if marked || !r.marked() {
				h.failf("record %d, fate %d, is below the watermark; marked: %v", r.offset, r.fate, marked)
			}
		case r.fate == unverified:
			if !marked {
				h.failf("the mark of record %d is lost", r.offset)
			}
		case marked != r.marked():
			h.failf("record %d, fate %d: marked %v", r.offset, r.fate, marked)
		case marked:
			s.Blocks[block].Sum -= r.print // to be put back
		case r.known && (r.attempt > 0 || r.doomed != nil):
			o := Open{Offset: r.offset, Attempts: r.attempt, Check: uint16(r.print), Rejected: r.doomed, InFlight: r.fate == inFlight}
			if r.fate == parked || r.fate == nacked {
				o.DueAt = r.dueAt
			}
			wantOpen = append(wantOpen, o)
		}
	}
	own := len(s.Blocks) - len(h.m.blocks)
	for i, b := range s.Blocks {
		if i >= own {
			if j := i - own; b.Sum != h.m.blocks[j].Sum || !slices.Equal(b.Runs, h.m.blocks[j].Runs) {
				h.failf("block %+v, want %+v", b, h.m.blocks[j])
			}
		} else if b.Sum != 0 {
			h.failf("block %d has another sum than its records", i)
		}
	}
	for _, r := range h.m.recs {
		if block, marked := ledger.Marked(s.Blocks[:own], r.offset); marked {
			s.Blocks[block].Sum += r.print
		}
	}
	wantOpen = append(wantOpen, h.m.open...)
	got := slices.Clone(s.Open)
	for _, all := range [][]Open{got, wantOpen} {
		for i := range all {
			if all[i].DueAt <= h.m.now { // its timer may not have fired yet
				all[i].DueAt = 0
			}
		}
	}
	var output []put
	for _, o := range s.Output() {
		output = append(output, o.(put))
	}
	if !slices.Equal(output, h.m.emitted) {
		h.failf("output %+v, want %+v", output, h.m.emitted)
	}
	if !slices.Equal(got, wantOpen) {
		h.failf("open records %+v, want %+v", got, wantOpen)
	}
	return s
}

// settle mirrors Partition.settle.
func (h *harness) settle(run *modelRun, v Verdict) (first bool) {
	if run.status != Pending || v.Status == Pending {
		return false
	}
	run.status = v.Status
	run.rec.known = true
	if v.Status != Acked {
		run.held = nil
	}
	switch {
	case v.Status == Nacked:
		run.rec.dueAt = v.DueAt
		run.rec.fate = nacked
		if run.done {
			run.rec.fate = parked
		}
	case v.Hold:
		run.rec.fate = rejecting
	case v.Confirm:
		run.rec.fate = confirming
	default:
		run.rec.fate = settled
		h.emit(run.rec)
	}
	return true
}

func (h *harness) finish(k int, v Verdict) {
	run := h.runs[k]
	h.logf("finish %d with %+v", run.rec.offset, v)
	first := h.settle(run, v)
	h.runs = slices.Delete(h.runs, k, k+1)
	run.done = true
	run.rec.runs = slices.DeleteFunc(run.rec.runs, func(r *modelRun) bool { return r == run })
	if run.status == Nacked && run.rec.fate == nacked {
		run.rec.fate = parked
	}
	if run.status == Pending {
		run.rec.fate, run.rec.known = pending, true
	}
	h.old = append(h.old, run)
	next := &Delivery[*modelRec, any]{}
	gotFirst, ok, w := h.p.FinishAndTake(run.d, run.print(v), h.m.now, next)
	if gotFirst != first {
		h.failf("record %d: finish settled %v, want %v", run.rec.offset, gotFirst, first)
	}
	if ok {
		h.taken(next)
	}
	h.work(w)
}

// print adds the fingerprint, where one is asked for.
func (run *modelRun) print(v Verdict) Verdict {
	if v.Status != Acked || run.d.Behind() {
		v.Fingerprint = run.rec.print
	}
	return v
}

func (h *harness) verb(run *modelRun, v Verdict) {
	if v.Status == Pending {
		return
	}
	h.logf("settle %d attempt %d %+v", run.rec.offset, run.attempt, v)
	if run.done {
		v.Confirm = false // its handler has run
	}
	want := h.settle(run, v)
	status, first, w := h.p.Settle(run.d, run.print(v), h.m.now)
	if first != want || status != run.status {
		h.failf("record %d: settled %v as %d, want %v as %d", run.rec.offset, first, status, want, run.status)
	}
	if run.rec.fate == parked && run.rec.dueAt <= h.m.now {
		run.rec.fate = due
	}
	if b := len(h.log); first && b%2 == 0 {
		h.p.Want(run.d)
	}
	h.work(w)
}

func (h *harness) cumulative(run *modelRun) {
	h.logf("cumulative %d", run.rec.offset)
	before := len(h.m.emitted)
	h.settle(run, Verdict{Status: Acked})
	own := slices.Clone(h.m.emitted[before:])
	h.m.emitted = h.m.emitted[:before]
	var others []Acknowledged
	if run.status == Acked {
		for _, r := range h.m.recs {
			if r == run.rec {
				break
			}
			switch r.fate {
			case pending, parked, due:
				if r.attempt == 0 || r.fate != pending && h.m.order != Unordered && h.m.heldUp(r) != r {
					continue // delayed, or behind a delayed one
				}
				others = append(others, Acknowledged{r.offset, r.attempt})
				if r.fate == pending {
					for _, o := range h.old {
						if o.rec == r && o.status == Pending {
							o.status = Acked
						}
					}
				}
				r.fate = settled
				h.emit(r)
			}
		}
	}
	h.m.emitted = append(h.m.emitted, own...)
	status, _, acked, w := h.p.AckCumulative(run.d, run.print(Verdict{Status: Acked}), h.m.now)
	if status != run.status || !slices.Equal(acked, others) {
		h.failf("cumulative ack of %d: %d and %v, want %d and %v", run.rec.offset, status, acked, run.status, others)
	}
	h.work(w)
}

func (h *harness) setAside(run *modelRun) {
	run.aside = run.aside || run.status == Rejected && run.rec.fate == rejecting
	h.p.SetAside(run.d)
}

// release stores a letter.
func (h *harness) release(r *modelRun) {
	want := r.status == Rejected && r.rec.fate == rejecting
	if want {
		r.rec.fate = settled
		h.emit(r.rec)
	}
	ok, w := h.p.Release(r.d)
	if ok != want {
		h.failf("release of %d: %v, want %v", r.rec.offset, ok, want)
	}
	h.work(w)
}

// tick lets time pass.
func (h *harness) tick(by int64) {
	h.m.now += by
	for _, r := range h.m.recs {
		if r.fate.timed() && r.dueAt <= h.m.now {
			r.fate = due
		}
	}
	h.work(h.p.Tick(h.m.now))
}

// commit stores a snapshot, and leaves blocks out for want of room.
func (h *harness) commit(leave func(block int) bool) {
	s := h.snapshot()
	kept := make([]bool, len(s.Blocks))
	for i := range kept {
		kept[i] = !leave(i)
	}
	s.Keep(kept)
	h.logf("commit %+v, kept %v", s.Mark, kept)
	if h.p.Reverted(s) {
		h.failf("a new snapshot is not true")
	}
	h.snap, h.kept = s, kept
	m := h.m
	m.waiting = len(kept)%3 == 1 && !kept[0]
	m.commit, m.stored = int(s.Seq), 0
	for i, r := range m.recs {
		block, marked := ledger.Marked(s.Blocks, r.offset)
		stored := marked && kept[block]
		if stored && r.fate != unverified {
			m.stored++
		}
		if r.fate == confirming && (stored || i < m.commit) {
			r.fate = settled
		}
	}
	h.work(h.p.Committed(s, h.m.waiting))
	m.emitted = nil
	for _, run := range append(slices.Clone(h.runs), h.old...) { // what Covers says of those that were wanted
		if i := slices.Index(m.recs, run.rec); run.rec.fate == settled && s.Covers(run.d.Seq()) {
			if block, marked := ledger.Marked(s.Blocks, run.rec.offset); i >= int(s.Seq) && !(marked && kept[block]) {
				h.failf("record %d is not covered", run.rec.offset)
			}
		}
	}
}

// unconfirm takes back a record that was to be confirmed.
func (h *harness) unconfirm(run *modelRun) {
	if run.rec.fate != confirming {
		return
	}
	h.logf("unconfirm %d", run.rec.offset)
	s := h.p.Snapshot()
	if i := slices.Index(h.m.recs, run.rec); i < h.m.front() {
		h.m.skipped = run.rec.offset
	}
	run.rec.fate = inFlight
	run.rec.attempt--
	h.p.Unconfirm(run.d.Seq())
	if !h.p.Reverted(s) {
		h.failf("a snapshot with record %d is taken for true", run.rec.offset)
	}
}
