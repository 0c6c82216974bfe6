package partition

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// model is the naive truth: every record ever pushed, in order, with its fate.
type model struct {
	order   Order
	max     int // handlers at once, without the reserve
	bound   uint64
	recs    []*modelRec
	commit  int // records below are committed
	now     int64
	stopped bool
	until   int64 // the end of a drain
	skipped int64 // offsets below hold no record that is to come
}

type modelRec struct {
	offset  int64
	key     string
	attempt int
	again   int // deliveries after a nack in the drain
	fate    state
	dueAt   int64
	runs    []*modelRun // unfinished deliveries
	known   bool        // it was nacked, rejected or left pending, here or before
}

type modelRun struct {
	d       *Delivery[*modelRec]
	rec     *modelRec
	attempt int
	status  Status
	done    bool
	waits   bool
	aside   bool // its letter is refused for good
}

func (m *model) head() int {
	for i, r := range m.recs {
		if r.fate != settled {
			return i
		}
	}
	return len(m.recs)
}

func (m *model) watermark(start int64) int64 {
	if h := m.head(); h > 0 {
		start = m.recs[h-1].offset + 1
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

// free tells whether a record may be handed out now, by the rules as they are
// written for users; head is given as the record that may use a lent lane.
func (m *model) free(i int, isHead bool) bool {
	r := m.recs[i]
	if m.bound > 0 && uint64(i-m.commit) >= m.bound {
		return false
	}
	if r.fate != queued && !((r.fate == parked || r.fate == due) && r.dueAt <= m.now) {
		return false
	}
	for j, o := range m.recs {
		if j == i {
			continue
		}
		if !m.sameLane(o, r) {
			continue
		}
		for _, run := range o.runs {
			if !(isHead && run.waits && j > i) {
				return false
			}
		}
		// an earlier record that must still be delivered goes first
		if o.fate == queued || o.fate == parked || o.fate == due {
			if j < i {
				return false
			}
		}
	}
	return len(r.runs) == 0
}

// awaited tells whether a handler waits for a commit that record i holds up.
func (m *model) awaited(i int) bool {
	for _, r := range m.recs[i+1:] {
		for _, run := range r.runs {
			if run.waits {
				return true
			}
		}
	}
	return false
}

func (r *modelRec) check() uint16 { return uint16(r.offset) }

// inherit gives the record what an earlier owner left of it.
func (r *modelRec) inherit(open []Open) {
	for _, o := range open {
		if o.Offset == r.offset && o.Check == r.check() {
			r.attempt, r.known = o.Attempts, true
			if o.DueAt > 0 {
				r.fate, r.dueAt = parked, o.DueAt
			}
		}
	}
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
	p     *Partition[*modelRec]
	start int64
	awake int // slots that hold nothing and look
	slots int
	runs  []*modelRun // held by a slot
	old   []*modelRun // finished, may be settled late
	last  int64
	bytes *Bytes
	open  []Open // of an earlier owner
	log   []string
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

func (h *harness) work(w Work) {
	if w.Wake < 0 || w.Spawn < 0 {
		h.failf("negative work %+v", w)
	}
	h.awake += w.Wake + w.Spawn
	h.slots += w.Spawn
	if h.slots > h.m.max+1 {
		h.failf("%d slots started, %d allowed", h.slots, h.m.max+1)
	}
	if at, ok := h.p.Due(); w.Timer && ok && at <= h.m.now {
		h.work(h.p.Tick(h.m.now))
	}
}

func (h *harness) nrunning() int { return len(h.runs) }

// taken checks a record that was handed out.
func (h *harness) taken(d *Delivery[*modelRec]) {
	i := slices.IndexFunc(h.m.recs, func(r *modelRec) bool { return r.offset == d.Offset() })
	if d.Evicted() {
		if d.Record() != nil {
			h.failf("record %d was evicted and is there", d.Offset())
		}
		h.p.Restore(d, h.m.recs[i])
	}
	rec := d.Record()
	if rec != h.m.recs[i] {
		h.failf("offset %d came with record %v", d.Offset(), rec)
	}
	if ok, _ := h.m.hole(i); h.m.stopped && !ok {
		h.failf("record %d handed out of a stopped partition", rec.offset)
	}
	isHead := i == h.m.head()
	reserve := isHead && h.m.awaited(i)
	if !h.m.free(i, reserve) {
		h.failf("record %d (key %q) handed out of turn", rec.offset, rec.key)
	}
	if n := h.nrunning(); n > h.m.max || (n == h.m.max && !reserve) {
		h.failf("record %d handed out with %d of %d slots in use", rec.offset, n, h.m.max)
	}
	if h.m.stopped && rec.fate != queued {
		rec.again++
	}
	rec.attempt++
	if d.Attempt() != rec.attempt || d.Offset() != rec.offset {
		h.failf("record %d: attempt %d, want %d", rec.offset, d.Attempt(), rec.attempt)
	}
	rec.fate = inFlight
	run := &modelRun{d: d, rec: rec, attempt: rec.attempt}
	rec.runs = append(rec.runs, run)
	h.runs = append(h.runs, run)
	h.log = append(h.log, fmt.Sprintf("take %d key %q attempt %d", rec.offset, rec.key, rec.attempt))
}

// lookAll lets every slot that is awake look for a record.
func (h *harness) lookAll() {
	for h.awake > 0 {
		h.awake--
		d := &Delivery[*modelRec]{}
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
	if h.m.stopped {
		return
	}
	n, head := h.nrunning(), h.m.head()
	for i := head; i < len(h.m.recs); i++ {
		r := h.m.recs[i]
		if (r.fate == parked) && r.dueAt <= h.m.now {
			continue // its timer has not fired yet
		}
		if (n < h.m.max && h.m.free(i, false)) || (n <= h.m.max && i == head && h.m.awaited(i) && h.m.free(i, true)) {
			h.failf("record %d (fate %d) lies ready, %d of %d slots in use", r.offset, r.fate, n, h.m.max)
		}
	}
}

func (h *harness) check() {
	if got, want := h.p.Mark().Offset, h.m.watermark(h.start); got != want {
		h.failf("watermark %d, want %d", got, want)
	}
	if got := h.p.Mark().Offset; got < h.last {
		h.failf("watermark went back from %d to %d", h.last, got)
	}
	h.last = h.p.Mark().Offset
	if got, want := int(h.p.Mark().Seq), h.m.head(); got != want {
		h.failf("head %d, want %d", got, want)
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

// wantUnsettled compares what would be stored of open records.
func (h *harness) wantUnsettled(open []Open) {
	var want []Open
	for _, r := range h.m.recs {
		if r.known && r.attempt > 0 && r.fate != settled {
			o := Open{Offset: r.offset, Attempts: r.attempt, Check: r.check()}
			if r.fate == parked || r.fate == nacked {
				o.DueAt = r.dueAt
			}
			want = append(want, o)
		}
	}
	for _, o := range open {
		if len(h.m.recs) == 0 || o.Offset > h.m.recs[len(h.m.recs)-1].offset {
			want = append(want, o)
		}
	}
	got := h.p.Unsettled()
	for _, all := range [][]Open{got, want} {
		for i := range all {
			if all[i].DueAt <= h.m.now { // its timer may not have fired yet
				all[i].DueAt = 0
			}
		}
	}
	slices.SortFunc(got, func(a, b Open) int { return cmp.Compare(a.Offset, b.Offset) })
	if !slices.Equal(got, want) {
		h.failf("open records %+v, want %+v", got, want)
	}
}

// settle mirrors Partition.settle.
func (h *harness) settle(run *modelRun, v Verdict) (first bool) {
	if run.status != Pending || v.Status == Pending {
		return false
	}
	run.status = v.Status
	run.rec.known = true
	switch v.Status {
	case Nacked:
		run.rec.dueAt = v.DueAt
		run.rec.fate = nacked
		if run.done {
			run.rec.fate = parked
		}
	default:
		run.rec.fate = settled
		if v.Hold {
			run.rec.fate = rejecting
		}
	}
	return true
}

func (h *harness) finish(k int, v Verdict) {
	run := h.runs[k]
	h.runs = slices.Delete(h.runs, k, k+1)
	first := h.settle(run, v)
	run.done = true
	run.rec.runs = slices.DeleteFunc(run.rec.runs, func(r *modelRun) bool { return r == run })
	if run.status == Nacked && run.rec.fate == nacked {
		run.rec.fate = parked
	}
	if run.status == Pending {
		run.rec.fate, run.rec.known = pending, true
	}
	h.old = append(h.old, run)
	next := &Delivery[*modelRec]{}
	v.Check = run.rec.check()
	gotFirst, ok, w := h.p.FinishAndTake(run.d, v, h.m.now, next)
	if gotFirst != first {
		h.failf("record %d: finish settled %v, want %v", run.rec.offset, gotFirst, first)
	}
	if ok {
		h.taken(next)
	}
	h.work(w)
}

func run(t testing.TB, data []byte) {
	next := func() int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b)
	}
	cfg := Config[*modelRec]{Key: keyOf, Committed: true, Start: 10}
	b := next()
	cfg.Order = Order(b % 3)
	stop := b%2 == 1
	cfg.MaxInFlight = 1
	if cfg.Order != ByPartition {
		cfg.MaxInFlight = 1 + next()%6
	}
	if b := next(); b%3 == 0 {
		cfg.MaxUncommitted = uint64(1 + b/3%20)
	}
	var bytes Bytes
	cfg.Bytes = &bytes
	cfg.Check = func(r *modelRec) uint16 { return r.check() }
	if next()%2 == 0 { // what an earlier owner left, by offset
		for offset := cfg.Start; offset < cfg.Start+40; offset += 1 + int64(next()%8) {
			b := next()
			o := Open{Offset: offset, Attempts: 1 + b%3, Check: uint16(offset)}
			if b%4 == 0 {
				o.DueAt = int64(b)
			}
			if b%16 == 5 {
				o.Check++ // another record was there
			}
			cfg.Open = append(cfg.Open, o)
		}
	}
	cfg.Detach = func(r *modelRec) *modelRec {
		if r == nil || r.fate == inFlight || r.fate == settled {
			t.Fatalf("record %v copied", r)
		}
		return r
	}
	m := &model{order: cfg.Order, max: cfg.MaxInFlight, bound: cfg.MaxUncommitted}
	h := &harness{t: t, m: m, p: New(cfg), start: 10, last: 10, bytes: &bytes, open: cfg.Open}
	offset := int64(10)
	verdict := func() Verdict {
		b := next()
		switch b % 8 {
		case 0, 1, 2:
			return Verdict{Status: Acked}
		case 3:
			return Verdict{Status: Rejected}
		case 4:
			return Verdict{Status: Rejected, Hold: true}
		case 5:
			return Verdict{Status: Nacked, DueAt: m.now + 1 + int64(b/8)}
		case 6:
			return Verdict{Status: Nacked, DueAt: m.now}
		}
		return Verdict{}
	}
	var last []byte
	if stop {
		data, last = data[:len(data)-len(data)/4], data[len(data)-len(data)/4:]
	}
	for len(data) > 0 {
		op := next()
		switch op % 16 {
		case 0, 1, 2: // push, with gaps
			for range 1 + op/12%4 {
				b := next()
				offset += int64(b / 64)
				rec := &modelRec{offset: offset}
				if k := b % 6; k > 0 {
					rec.key = string(rune('a' + k))
				}
				offset++
				rec.inherit(cfg.Open)
				m.recs = append(m.recs, rec)
				w, err := h.p.Push(rec.offset, rec, 10)
				if err != nil {
					h.failf("push %d: %v", rec.offset, err)
				}
				h.work(w)
			}
		case 3, 4, 5: // finish
			if len(h.runs) > 0 {
				h.finish(next()%len(h.runs), verdict())
			}
		case 6: // settle early
			if len(h.runs) > 0 {
				h.verb(h.runs[next()%len(h.runs)], verdict())
			}
		case 7: // settle late, again, or in contradiction
			if len(h.old) > 0 {
				h.verb(h.old[next()%len(h.old)], verdict())
			}
		case 8: // time passes
			m.now += int64(next() % 16)
			for _, r := range m.recs {
				if r.fate == parked && r.dueAt <= m.now {
					r.fate = due
				}
			}
			h.work(h.p.Tick(m.now))
		case 9: // a commit is confirmed
			mark := h.p.Mark()
			m.commit = int(mark.Seq)
			h.work(h.p.Committed(mark))
		case 10:
			all := append(slices.Clone(h.runs), h.old...)
			if len(all) > 0 {
				h.cumulative(all[next()%len(all)])
			}
		case 14: // a letter is refused for good
			if len(h.old) > 0 {
				h.setAside(h.old[next()%len(h.old)])
			}
		case 15: // the log goes on without a record
			b := next()
			from := h.p.Next() - int64(b%4/3)
			to := from + int64(b/4%4)
			settledAll := m.head() == len(m.recs)
			want := settledAll && b%4 != 3 && to > from
			w, ok := h.p.Skip(from, to)
			if ok != want || w.Moved != want {
				h.failf("skip from %d to %d: %v, %+v, want %v", from, to, ok, w, want)
			}
			if want {
				m.skipped, offset = to, max(offset, to)
			}
			h.work(w)
		case 12:
			h.p.Evict(m.now + int64(next()%4))
		case 13:
			for from, more := uint64(0), true; more; {
				from, more = h.p.Detach(from, int64(next()), m.now+int64(next()%4))
			}
		case 11:
			b := next()
			if b%2 == 0 && len(h.runs) > 0 { // a handler waits for a commit
				h.wait(h.runs[b/2%len(h.runs)])
			} else if len(h.old) > 0 { // a letter is stored
				r := h.old[b/2%len(h.old)]
				want := r.status == Rejected && r.rec.fate == rejecting
				if want {
					r.rec.fate = settled
				}
				ok, w := h.p.Release(r.d)
				if ok != want {
					h.failf("release of %d: %v, want %v", r.rec.offset, ok, want)
				}
				h.work(w)
			}
		}
		h.lookAll()
		h.check()
		h.wantUnsettled(cfg.Open)
	}
	if stop {
		data = last
		h.drain(next, verdict)
	} else {
		h.finale()
	}
}

// hole tells whether a stopped partition still hands a record out, soon whether
// that waits for its time only.
func (m *model) hole(i int) (ok, soon bool) {
	r := m.recs[i]
	again := r.fate == parked || r.fate == due
	switch {
	case again && (r.again == drainTries || r.dueAt > m.until):
		return false, false
	case !again && (r.fate != queued || m.bound > 0 && uint64(i-m.commit) >= m.bound):
		return false, false
	case !slices.ContainsFunc(m.recs[i:], func(o *modelRec) bool { return o.fate == settled }):
		return false, false
	}
	for j, o := range m.recs {
		if o != r && m.sameLane(o, r) && (len(o.runs) > 0 || (o.fate == parked || o.fate == due) && j < i) {
			return false, false
		}
	}
	if again && r.dueAt > m.now {
		return false, true
	}
	return true, false
}

func (h *harness) setAside(run *modelRun) {
	run.aside = run.aside || run.status == Rejected && run.rec.fate == rejecting
	h.p.SetAside(run.d)
}

// drain stops the partition: what its handlers have finishes, and with it what
// lies below a settled record. Nothing else is handed out.
func (h *harness) drain(next func() int, verdict func() Verdict) {
	h.m.until = h.m.now + int64(next()%32)
	drained, w := h.p.Stop(h.m.until)
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
	rest := func() (letter int, now, soon bool) {
		for i := range h.m.recs {
			n, s := h.m.hole(i)
			now, soon = now || n, soon || s
		}
		return slices.IndexFunc(h.old, func(o *modelRun) bool {
			return o.status == Rejected && o.rec.fate == rejecting && !o.aside
		}), now, soon
	}
	for !closed() {
		letter, now, soon := rest()
		switch b := next(); {
		case len(h.runs) > 0 && b%4 == 3: // a handler begins to wait for a commit, or ends that
			h.wait(h.runs[b/4%len(h.runs)])
		case len(h.runs) > 0:
			h.finish(b%len(h.runs), verdict())
		case letter >= 0:
			o := h.old[letter]
			if b%2 == 0 {
				h.setAside(o)
				break
			}
			o.rec.fate = settled
			_, w := h.p.Release(o.d)
			h.work(w)
		case now:
			h.failf("a record is left below a settled one")
		case soon:
			h.m.now++
			h.work(h.p.Tick(h.m.now))
		default:
			h.failf("not drained")
		}
		h.lookAll()
		h.check()
	}
	if letter, now, soon := rest(); len(h.runs) > 0 || letter >= 0 || now || soon {
		h.failf("drained with %d handlers at work, letter %d, a record below a settled one: %v, %v", len(h.runs), letter, now, soon)
	}
	h.wantUnsettled(h.open)
	h.p.Close()
	h.wantUnsettled(h.open)
	for _, o := range h.old {
		if o.status == Pending && h.p.Status(o.d) != Revoked {
			h.failf("record %d: status %d after the end", o.rec.offset, h.p.Status(o.d))
		}
	}
	if n := h.bytes.Load(); n != 0 {
		h.failf("%d bytes left", n)
	}
}

func (h *harness) wait(r *modelRun) {
	by := 1
	if r.waits {
		by = -1
	}
	r.waits = !r.waits
	h.work(h.p.Wait(r.d, by))
}

func (h *harness) verb(run *modelRun, v Verdict) {
	if v.Status == Pending {
		return
	}
	h.log = append(h.log, fmt.Sprintf("settle %d attempt %d %+v", run.rec.offset, run.attempt, v))
	want := h.settle(run, v)
	v.Check = run.rec.check()
	status, first, w := h.p.Settle(run.d, v, h.m.now)
	if first != want || status != run.status {
		h.failf("record %d: settled %v as %d, want %v as %d", run.rec.offset, first, status, want, run.status)
	}
	if run.rec.fate == parked && run.rec.dueAt <= h.m.now {
		run.rec.fate = due
	}
	h.work(w)
}

func (h *harness) cumulative(run *modelRun) {
	h.log = append(h.log, fmt.Sprintf("cumulative %d", run.rec.offset))
	h.settle(run, Verdict{Status: Acked})
	var others []Acknowledged
	if run.status == Acked {
		for _, r := range h.m.recs {
			if r == run.rec {
				break
			}
			switch r.fate {
			case pending, parked, due:
				others = append(others, Acknowledged{r.offset, r.attempt})
				if r.fate == pending {
					for _, o := range h.old {
						if o.rec == r && o.status == Pending {
							o.status = Acked
						}
					}
				}
				r.fate = settled
			}
		}
	}
	status, _, acked, w := h.p.AckCumulative(run.d, h.m.now)
	if status != run.status || !slices.Equal(acked, others) {
		h.failf("cumulative ack of %d: %d and %v, want %d and %v", run.rec.offset, status, acked, run.status, others)
	}
	h.work(w)
}

// finale settles everything: the watermark must reach the end.
func (h *harness) finale() {
	for round := 0; h.m.head() < len(h.m.recs); round++ {
		if round > 10*len(h.m.recs)+10 {
			h.failf("no progress: head %d of %d", h.m.head(), len(h.m.recs))
		}
		for len(h.runs) > 0 {
			h.finish(0, Verdict{Status: Acked})
			h.lookAll()
		}
		for _, o := range h.old {
			if o.status == Pending {
				h.verb(o, Verdict{Status: Acked})
				h.lookAll()
			}
			if o.status == Rejected && o.rec.fate == rejecting {
				o.rec.fate = settled
				_, w := h.p.Release(o.d)
				h.work(w)
				h.lookAll()
			}
		}
		h.m.now += 100
		for _, r := range h.m.recs {
			if r.fate == parked {
				r.fate = due
			}
		}
		h.work(h.p.Tick(h.m.now))
		mark := h.p.Mark()
		h.m.commit = int(mark.Seq)
		h.work(h.p.Committed(mark))
		h.lookAll()
		h.check()
	}
	for len(h.runs) > 0 {
		h.finish(0, Verdict{})
		h.lookAll()
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
	if h.p.npending != 0 || h.p.nreject != 0 || h.p.naside != 0 || h.p.nrunning != 0 || h.p.awake != 0 {
		h.failf("counts left: pending %d, rejecting %d, running %d, awake %d", h.p.npending, h.p.nreject, h.p.nrunning, h.p.awake)
	}
}

func TestModel(t *testing.T) {
	rounds := 4000
	if testing.Short() {
		rounds = 500
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range rounds {
		data := make([]byte, 3+rng.IntN(600))
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
