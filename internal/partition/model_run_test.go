package partition

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
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
	b := in.next()
	if b/8%4 > 0 {
		cfg.Late = new(atomic.Bool) // of all lives, as a subscription has one
	}
	if b%2 == 0 {
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
	m.late = cfg.Late != nil && cfg.Late.Load()
	m.blocks, m.open = slices.Clone(cfg.Marks), slices.Clone(cfg.Open)
	return &harness{t: t, m: m, p: New[any](cfg), start: cfg.Start, bytes: &bytes, late: cfg.Late, log: log}
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
