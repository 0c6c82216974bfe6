package partition

import (
	"slices"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// drain stops the partition: what its handlers have finishes and, if the application settles late, what is pending is
// settled. Nothing else is handed out.
func (h *harness) drain(in *source) {
	drained, w := h.p.Stop()
	h.m.stopped = true
	h.work(w)
	h.lookAll()
	closed := func() bool {
		select {
		case <-drained:
			return true
		default:
			return false
		}
	}
	for !closed() {
		letter := slices.IndexFunc(h.old, func(o *modelRun) bool {
			return o.status == Rejected && o.rec.fate == rejecting && !o.aside
		})
		late := slices.IndexFunc(h.old, func(o *modelRun) bool { return o.status == Pending && o.rec.fate == pending })
		switch b := in.next(); {
		case late >= 0 && (b%8 == 7 || len(h.runs) == 0 && letter < 0 && h.late != nil && h.m.late):
			h.verb(h.old[late], h.verdict(in))
		case len(h.runs) > 0 && b%4 == 3 && h.runs[0].status == Pending && len(h.runs[0].held) == 0: // nobody takes it
			run := h.runs[0]
			h.runs = h.runs[1:]
			h.logf("abandon %d", run.rec.offset)
			run.done = true
			run.rec.runs = slices.DeleteFunc(run.rec.runs, func(r *modelRun) bool { return r == run })
			run.rec.fate = queued
			if run.rec.attempt--; run.rec.attempt > 0 || run.rec.dueAt != 0 {
				run.rec.fate = due
			}
			h.work(h.p.Abandon(run.d, h.m.now))
		case len(h.runs) > 0:
			h.finish(b%len(h.runs), h.verdict(in))
		case letter >= 0 && b%2 == 0:
			h.setAside(h.old[letter])
		case letter >= 0:
			h.release(h.old[letter])
		default:
			h.failf("not drained")
		}
		h.lookAll()
		h.check()
	}
	if slices.ContainsFunc(h.old, func(o *modelRun) bool { return o.status == Rejected && o.rec.fate == rejecting && !o.aside }) || len(h.runs) > 0 {
		h.failf("drained with %d handlers at work, or a letter on its way", len(h.runs))
	}
	if h.late != nil && h.late.Load() && slices.ContainsFunc(h.m.recs, func(r *modelRec) bool { return r.fate == pending }) {
		h.failf("drained with a record that may still be settled")
	}
}

// end is the end of a drained assignment: the last commit, of all that is settled.
func (h *harness) end(in *source) {
	left, running := h.p.Close()
	if len(running) > 0 || left.Running > 0 && !slices.ContainsFunc(h.m.recs, func(r *modelRec) bool { return r.fate == confirming || r.fate == inFlight }) {
		h.failf("left %+v, %d run", left, len(running))
	}
	h.snap = h.snapshot()
	h.kept = make([]bool, len(h.snap.Blocks))
	for i := range h.kept {
		h.kept[i] = true
	}
	for _, r := range h.m.recs { // the commit was sent
		if r.fate == confirming {
			r.fate = settled
		}
	}
	for _, o := range h.old {
		if o.status == Pending && h.p.Status(o.d) != Revoked {
			h.failf("record %d: status %d after the end", o.rec.offset, h.p.Status(o.d))
		}
	}
	if n := h.bytes.Load(); n != h.outputBytes() {
		h.failf("%d bytes left, of output %d", n, h.outputBytes())
	}
	h.p.Drop()
	if n := h.bytes.Load(); n != 0 {
		h.failf("%d bytes left", n)
	}
	if s := h.p.Snapshot(); len(s.Blocks)+len(s.Open) > 0 {
		h.failf("a snapshot of what was dropped: %+v", s)
	}
}

// restart is the next assignment, of what the last commit stored. The log may not be the same.
func (h *harness) restart(in *source, cfg Config[*modelRec], coming []*modelRec) (Config[*modelRec], []*modelRec) {
	cfg.Marks, cfg.Open = nil, nil
	if cfg.Due = asked; in.next()%4 == 0 { // a member that does not know of delays
		cfg.Due = nil
	}
	if h.snap != nil {
		cfg.Start = h.snap.Offset
		for i, b := range h.snap.Blocks {
			if h.kept[i] {
				cfg.Marks = append(cfg.Marks, b)
			}
		}
		cfg.Open = slices.Clone(h.snap.Open)
	}
	unchanged := map[int64]*modelRec{}
	var log []*modelRec
	lose := in.next()
	for i, r := range append(h.m.recs, coming...) {
		switch {
		case r.offset < cfg.Start:
			if i < len(h.m.recs) && !r.marked() {
				h.failf("record %d, fate %d, is skipped", r.offset, r.fate)
			}
			continue
		case lose%4 == 0 && in.next()%16 == 0: // compaction, or retention
			continue
		case lose%4 == 1 && in.next()%16 == 0: // an unclean election
			log = append(log, &modelRec{offset: r.offset, key: r.key, asks: r.asks, print: printOf(r.offset, 1+lose)})
			continue
		}
		unchanged[r.offset] = r
		log = append(log, &modelRec{offset: r.offset, key: r.key, asks: r.asks, print: r.print, before: r.before || r.marked()})
	}
	// What a mark says, if it holds, is true.
	for _, b := range cfg.Marks {
		var marked []*modelRec
		sum := uint32(0)
		for _, r := range log {
			if _, ok := ledger.Marked([]ledger.Block{b}, r.offset); ok {
				marked, sum = append(marked, r), sum+r.print
			}
		}
		for _, r := range marked {
			if was := unchanged[r.offset]; sum == b.Sum && (was == nil || !was.marked() && !was.before) {
				h.failf("record %d is marked, and is not settled: %+v", r.offset, was)
			}
		}
	}
	h.logf("restart at %d, marks %+v", cfg.Start, cfg.Marks)
	return cfg, log
}

// finale settles everything: the watermark must reach the end.
func (h *harness) finale() {
	h.m.paused = false
	h.work(h.p.Pause(false))
	if h.m.stopped {
		return
	}
	h.m.blocks = nil
	for _, r := range h.m.recs {
		if r.fate == unverified {
			r.doubt()
		}
	}
	h.work(h.p.Doubt())
	h.m.admit()
	for round := 0; h.m.head() < len(h.m.recs); round++ {
		if round > 10*len(h.m.recs)+10 {
			h.failf("no progress: head %d of %d", h.m.head(), len(h.m.recs))
		}
		h.lookAll()
		for len(h.runs) > 0 {
			h.finish(0, Verdict{Status: Acked})
			h.lookAll()
		}
		for _, o := range h.old {
			if o.status == Pending {
				h.verb(o, Verdict{Status: Acked})
				h.lookAll()
			}
			if o.rec.fate == inFlight && len(o.rec.runs) == 0 {
				return // one that was not confirmed stays for the next owner
			}
			if o.status == Rejected && o.rec.fate == rejecting {
				h.release(o)
				h.lookAll()
			}
		}
		h.tick(100)
		h.commit(func(int) bool { return false })
		h.m.admit()
		h.lookAll()
		h.check()
	}
	if n := h.bytes.Load(); n != 0 {
		h.failf("%d bytes left", n)
	}
	if n := len(h.p.lanes); n != 0 {
		h.failf("%d lanes left", n)
	}
	if l := h.p.Load(); l.Ready != 0 || l.Blocked || l.Unsettled != 0 {
		h.failf("load left: %+v", l)
	}
	if o := h.p.Overview(); o.Unsettled != 0 || h.p.naside != 0 || len(h.p.running) != 0 || h.p.awake != 0 || len(h.p.notes) != 0 {
		h.failf("left: %+v, aside %d, running %d, awake %d, notes %d", o, h.p.naside, len(h.p.running), h.p.awake, len(h.p.notes))
	}
}
