package partition

import (
	"errors"
	"slices"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// settle mirrors Partition.settle.
func (h *harness) settle(run *modelRun, v Verdict) (first bool) {
	if run.status != Pending || v.Status == Pending {
		return false
	}
	run.status = v.Status
	run.rec.known = true
	h.m.late = h.m.late || run.done && !v.ByHand
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
	gotFirst, ok, w := h.p.FinishAndTake(run.d, &v, h.m.now, next)
	if gotFirst != first {
		h.failf("record %d: finish settled %v, want %v", run.rec.offset, gotFirst, first)
	}
	if ok {
		h.taken(next)
	}
	h.work(w)
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
	status, first, w := h.p.Settle(run.d, v, h.m.now)
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
					h.m.late = true
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
	status, _, acked, w := h.p.AckCumulative(run.d)
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

// left returns the delivery of a record that its handler left without a settlement.
func (h *harness) left(r *modelRec) *modelRun {
	for _, o := range h.old {
		if o.rec == r && o.status == Pending {
			return o
		}
	}
	h.failf("record %d is pending, and has no delivery", r.offset)
	return nil
}

func (h *harness) retry(r *modelRec) {
	want := r.fate.timed() || r.fate == due || r.fate == pending
	if r.fate == pending {
		h.settle(h.left(r), Verdict{Status: Nacked, DueAt: h.m.now, ByHand: true})
	}
	if want {
		h.m.dueNow(r)
	}
	h.logf("retry %d: %v", r.offset, want)
	_, ok, w := h.p.Retry(r.offset, h.m.now)
	if ok != want {
		h.failf("retry of record %d: %v, want %v", r.offset, ok, want)
	}
	h.work(w)
}

func (h *harness) condemn(r *modelRec) {
	reason := errors.New("condemned")
	d, ok, w := h.p.Condemn(r.offset, reason, h.m.now)
	h.logf("condemn %d, fate %d: %v", r.offset, r.fate, ok)
	switch r.fate {
	case inFlight, pending:
		if run := slices.IndexFunc(append(slices.Clone(h.runs), h.old...), func(o *modelRun) bool { return o.d == d }); !ok || run < 0 {
			h.failf("condemned record %d, fate %d: %v, %v", r.offset, r.fate, d, ok)
		}
	case queued, parked, due, nacked, delayed:
		switch r.doomed = reason; r.fate {
		case parked, due, delayed:
			h.m.dueNow(r)
		case nacked:
			r.dueAt = h.m.now
		}
		_, e := h.p.find(r.offset)
		r.known = e.known // unless it was pushed out of memory
		if d != nil || !ok {
			h.failf("condemned record %d, fate %d: %v, %v", r.offset, r.fate, d, ok)
		}
	default:
		if ok {
			h.failf("condemned record %d, fate %d", r.offset, r.fate)
		}
	}
	h.work(w)
}
