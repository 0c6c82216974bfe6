package partition

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
)

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
	late  *atomic.Bool // nil: nobody wants to know
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
