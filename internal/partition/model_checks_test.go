package partition

import (
	"slices"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

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
	if h.late != nil && h.late.Load() != h.m.late {
		h.failf("settled late: %v, want %v", h.late.Load(), h.m.late)
	}
	unsettled := 0
	for _, r := range h.m.recs {
		if r.fate != settled {
			unsettled++
		}
	}
	if l := h.p.Load(); l.Unsettled != unsettled || l.Blocked != h.m.blocked() || l.Running != len(h.runs) {
		h.failf("load %+v, want %d unsettled, blocked %v, %d running", l, unsettled, h.m.blocked(), len(h.runs))
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

// overview checks a snapshot for those that look.
func (h *harness) overview() {
	o := h.p.Overview()
	var want Counts
	for i, r := range h.m.recs {
		switch {
		case r.fate == settled:
		case i >= h.m.admitted && (r.fate.timed() || r.fate == due):
			want[queued]++ // it is parked when it is admitted
		default:
			want[r.fate]++
		}
	}
	for _, c := range []*Counts{&want, &o.Counts} { // its timer may not have fired yet
		c[due], c[parked], c[delayed] = c[due]+c[parked]+c[delayed], 0, 0
	}
	if !h.m.stopped && o.Ready != h.m.ready() {
		h.failf("%d records are ready, want %d", o.Ready, h.m.ready())
	}
	if o.Counts != want || o.Watermark != h.m.watermark(h.start) || o.Running != len(h.runs) || o.Paused != h.m.paused {
		h.failf("overview %+v, want %v", o, want)
	}
	if head := h.m.head(); (o.Oldest == nil) != (head == len(h.m.recs)) || o.Oldest != nil && (o.Oldest.Offset != h.m.recs[head].offset || o.Oldest.Attempt != h.m.recs[head].attempt) {
		h.failf("oldest %+v of %d", o.Oldest, head)
	}
	records, sections := h.p.Window(1000)
	n := 0
	for _, s := range sections {
		for _, m := range s.Counts {
			n += m
		}
	}
	if len(records) != o.Unsettled || n != len(records) {
		h.failf("a window of %d records, sections of %d, want %d", len(records), n, o.Unsettled)
	}
}
