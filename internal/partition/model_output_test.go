package partition

import (
	"slices"
)

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
