package partition

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// source hands out test data byte by byte.
type source struct{ data []byte }

func (s *source) next() int {
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return int(b)
}

// printOf is a fingerprint: another one for each record, and for another record at the offset.
func printOf(offset int64, salt int) uint32 {
	x := uint64(offset)<<8 ^ uint64(salt)
	x *= 0x9e3779b97f4a7c15
	x ^= x >> 29
	x *= 0xbf58476d1ce4e5b9
	return uint32(x ^ x>>32)
}

// asked is Config.Due.
func asked(r *modelRec) int64 { return r.asks }

func run(t testing.TB, data []byte) {
	in := &source{data: data}
	cfg := Config[*modelRec]{Key: keyOf, Committed: true, Start: 10}
	cfg.Order = Order(in.next() % 3)
	cfg.MaxInFlight = 1
	if cfg.Order != ByPartition {
		cfg.MaxInFlight = 1 + in.next()%6
	}
	if b := in.next(); b%3 == 0 {
		cfg.MaxUncommitted = uint64(1 + b/3%20)
	}
	cfg.Fingerprint = func(r *modelRec) uint32 { return r.print }
	if b := in.next(); b%2 == 0 {
		cfg.Due = asked
		cfg.Output = b%4 == 0
	} else {
		cfg.Output = b%4 == 1
	}
	cfg.Detach = func(r *modelRec) *modelRec {
		if r == nil || r.fate == inFlight || r.fate == settled {
			t.Fatalf("record %v copied", r)
		}
		return r
	}
	var coming []*modelRec // of the log, behind what an assignment has read
	now, log := int64(0), []string(nil)
	for life := 0; ; life++ {
		h := begin(t, cfg, now, log)
		ends := len(in.data) * (3 - life) / (4 - life)
		for len(in.data) > ends {
			coming = h.step(in, coming)
			h.m.admit()
			h.lookAll()
			h.check()
		}
		b := in.next()
		if b%3 == 0 {
			h.drain(in)
			h.end(in)
		}
		if life == 3 || len(in.data) == 0 {
			if b%3 != 0 {
				h.finale()
			}
			return
		}
		cfg, coming = h.restart(in, cfg, coming)
		now, log = h.m.now, h.log
	}
}

// begin is the start of an assignment.
func begin(t testing.TB, cfg Config[*modelRec], now int64, log []string) *harness {
	var bytes Bytes
	cfg.Bytes = &bytes
	m := &model{order: cfg.Order, max: cfg.MaxInFlight, bound: int(cfg.MaxUncommitted), now: now}
	m.delays, m.output = cfg.Due != nil, cfg.Output
	m.blocks, m.open = slices.Clone(cfg.Marks), slices.Clone(cfg.Open)
	return &harness{t: t, m: m, p: New[any](cfg), start: cfg.Start, bytes: &bytes, log: log}
}

func (h *harness) verdict(in *source) Verdict {
	b := in.next()
	switch b % 10 {
	case 0, 1, 2, 8:
		return Verdict{Status: Acked}
	case 3:
		return Verdict{Status: Rejected}
	case 4:
		return Verdict{Status: Rejected, Hold: true}
	case 5:
		return Verdict{Status: Nacked, DueAt: h.m.now + 1 + int64(b/10)}
	case 6:
		return Verdict{Status: Nacked, DueAt: h.m.now}
	case 9:
		return Verdict{Status: Acked, Confirm: !h.m.output}
	}
	return Verdict{}
}

func (h *harness) push(rec *modelRec) {
	h.logf("push %d", rec.offset)
	h.m.recs = append(h.m.recs, rec)
	if h.m.delays && rec.asks > 0 {
		rec.fate, rec.dueAt = delayed, rec.asks
	}
	h.m.inherit(rec)
	w, err := h.p.Push(rec.offset, rec, 10)
	if err != nil {
		h.failf("push %d: %v", rec.offset, err)
	}
	h.work(w)
}

// step does one thing. It returns what is left to be read.
func (h *harness) step(in *source, coming []*modelRec) []*modelRec {
	m := h.m
	all := append(slices.Clone(h.runs), h.old...)
	op := in.next()
	switch op % 23 {
	case 0, 1, 2: // records come, with gaps
		for range 1 + op/21*2 {
			if len(coming) > 0 {
				h.push(coming[0])
				coming = coming[1:]
				continue
			}
			b := in.next()
			offset := h.p.Next() + int64(b/64)
			rec := &modelRec{offset: offset, print: printOf(offset, 0)}
			if k := b % 6; k > 0 {
				rec.key = string(rune('a' + k))
			}
			if b%8 == 7 {
				rec.asks = m.now + int64(b/8)
			}
			h.push(rec)
		}
	case 3, 4, 5:
		if len(h.runs) > 0 {
			h.finish(in.next()%len(h.runs), h.verdict(in))
		}
	case 6: // settle early
		if len(h.runs) > 0 {
			h.verb(h.runs[in.next()%len(h.runs)], h.verdict(in))
		}
	case 7: // settle late, again, or in contradiction
		if len(h.old) > 0 {
			h.verb(h.old[in.next()%len(h.old)], h.verdict(in))
		}
	case 8:
		h.tick(int64(in.next() % 16))
		h.endSpare()
	case 9, 16: // a commit is confirmed
		b := in.next()
		h.commit(func(block int) bool { return b%4 == 0 && (block+b/4)%3 == 0 })
	case 10:
		if len(all) > 0 {
			h.cumulative(all[in.next()%len(all)])
		}
	case 11: // a letter is stored
		if len(h.old) > 0 {
			b := in.next()
			run := h.old[b%len(h.old)]
			if b%2 == 0 {
				h.letter(run)
			}
			h.release(run)
		}
	case 12:
		h.p.Evict(m.now + int64(in.next()%4))
	case 13:
		for from, more := uint64(0), true; more; {
			from, more = h.p.Detach(from, int64(in.next()), m.now+int64(in.next()%4))
		}
	case 14: // a letter is refused for good
		if len(h.old) > 0 {
			h.setAside(h.old[in.next()%len(h.old)])
		}
	case 15: // the log continues without a record
		b := in.next()
		from := h.p.Next() - int64(b%4/3)
		to := from + int64(b/4%4)
		if len(coming) > 0 {
			to = min(to, coming[0].offset)
		}
		want := m.head() == len(m.recs) && b%4 != 3 && to > from
		w, ok := h.p.Skip(from, to)
		if ok != want || w.Has(Moved) != want {
			h.failf("skip from %d to %d: %v, %+v, want %v", from, to, ok, w, want)
		}
		if want { // what an earlier owner left of what lies there is gone
			m.skipped = to
			m.open = slices.DeleteFunc(m.open, func(o Open) bool { return o.Offset < to })
			for len(m.blocks) > 0 && m.blocks[0].Runs[0].From < to {
				m.blocks = m.blocks[1:]
			}
		}
		h.work(w)
	case 18:
		m.paused = in.next()%4 == 0
		h.logf("paused: %v", m.paused)
		h.work(h.p.Pause(m.paused))
	case 19:
		if n := len(m.recs); n > 0 {
			h.retry(m.recs[in.next()%n])
		}
	case 21, 22:
		if len(all) > 0 {
			h.hold(all[in.next()%len(all)], in.next())
		}
	case 20:
		if n := len(m.recs); n > 0 {
			h.condemn(m.recs[in.next()%n])
		}
	case 17: // what was marked does not come
		if b := in.next(); b%8 == 0 {
			h.logf("doubt")
			for _, r := range m.recs {
				if r.fate == unverified {
					r.doubt()
				}
			}
			m.blocks = nil
			h.work(h.p.Doubt())
		} else if len(all) > 0 && h.snap == nil { // nothing was ever sent
			h.unconfirm(all[b%len(all)])
		}
	}
	return coming
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
		h.settle(h.left(r), Verdict{Status: Nacked, DueAt: h.m.now})
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

// dueNow ends the delay of a record.
func (m *model) dueNow(r *modelRec) {
	r.fate, r.dueAt = due, m.now
	if slices.Index(m.recs, r) >= m.admitted {
		r.fate, r.dueAt = queued, 0
	}
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
	if len(records) != o.Unsettled() || n != len(records) {
		h.failf("a window of %d records, sections of %d, want %d", len(records), n, o.Unsettled())
	}
}

// drain stops the partition: what its handlers have finishes. Nothing else is handed out.
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
		switch b := in.next(); {
		case len(h.runs) > 0 && b%4 == 3 && h.runs[0].status == Pending && len(h.runs[0].held) == 0: // nobody takes it
			run := h.runs[0]
			h.runs = h.runs[1:]
			h.logf("abandon %d", run.rec.offset)
			run.done = true
			run.rec.runs = slices.DeleteFunc(run.rec.runs, func(r *modelRun) bool { return r == run })
			run.rec.fate = queued
			if run.rec.attempt--; run.rec.attempt > 0 {
				run.rec.fate = parked
				if run.rec.dueAt <= h.m.now {
					run.rec.fate = due
				}
			}
			h.work(h.p.Abandon(run.d))
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
	if o := h.p.Overview(); o.Unsettled() != 0 || h.p.naside != 0 || len(h.p.running) != 0 || h.p.awake != 0 || len(h.p.notes) != 0 {
		h.failf("left: %+v, aside %d, running %d, awake %d, notes %d", o, h.p.naside, len(h.p.running), h.p.awake, len(h.p.notes))
	}
}

func TestModel(t *testing.T) {
	rounds := 4000
	if testing.Short() {
		rounds = 500
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range rounds {
		data := make([]byte, 3+rng.IntN(900))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		run(t, data)
	}
}

func FuzzModel(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		data := make([]byte, 200)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 2000 {
			return
		}
		run(t, data)
	})
}
