package partition

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// batchModel is the naive truth about a partition that hands out batches.
type batchModel struct {
	t     testing.TB
	order Order
	p     *Partition[*batchRec, int]
	recs  []*batchRec
	now   int64

	filling []*Delivery[*batchRec, int]
	sealed  [][]*Delivery[*batchRec, int]
	size    int
	called  bool // since the last Collect
	log     []string
}

// batchRec is a record, in one of these states: queued (0), in the batch that is filled (-1), in a
// sealed one (its number), nacked (-2), settled (-3).
type batchRec struct {
	offset  int64
	key     string
	where   int
	dueAt   int64
	attempt int
}

const (
	inQueue   = 0
	inFilling = -1
	isNacked  = -2
	isSettled = -3
)

func (m *batchModel) failf(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), joinTail(m.log))
}

func (m *batchModel) sameLane(a, b *batchRec) bool {
	switch m.order {
	case ByPartition:
		return true
	case ByKey:
		return a.key != "" && a.key == b.key
	}
	return a == b
}

// free reports whether a record may join the batch that is filled now.
func (m *batchModel) free(i int) bool {
	r := m.recs[i]
	if r.where != inQueue && (r.where != isNacked || r.dueAt > m.now) {
		return false
	}
	for j, o := range m.recs {
		if j != i && m.sameLane(o, r) && (o.where > 0 || j < i && (o.where == inQueue || o.where == isNacked)) {
			return false
		}
	}
	return true
}

func (m *batchModel) work(w Work) {
	m.called = m.called || w.Has(Ready)
	if w.Wake != 0 || w.Spawn != 0 {
		m.failf("work for slots: %+v", w)
	}
}

// check compares the partition with the model.
func (m *batchModel) check() {
	m.t.Helper()
	watermark := int64(0)
	for _, r := range m.recs {
		if r.where != isSettled {
			break
		}
		watermark = r.offset + 1
	}
	if got := m.p.Mark().Offset; got != watermark {
		m.failf("watermark %d, want %d", got, watermark)
	}
	for _, b := range m.p.Snapshot().Blocks {
		sum := uint32(0)
		for _, r := range m.recs {
			if _, marked := ledger.Marked([]ledger.Block{b}, r.offset); marked {
				if sum += uint32(r.offset) + 1; r.where != isSettled {
					m.failf("record %d has a mark, and is not settled", r.offset)
				}
			}
		}
		if sum != b.Sum {
			m.failf("fingerprints of the marks %v: %d, want %d", b.Runs, b.Sum, sum)
		}
	}
	ready := 0
	m.p.each(m.p.head, func(seq uint64, e *entry[*batchRec, int]) bool {
		if e.state == queued && seq < m.p.admitted && !m.p.in(e.lane).parkedFirst() {
			ready++
		}
		return true
	})
	if m.p.nready != ready {
		m.failf("%d records count as ready, want %d", m.p.nready, ready)
	}
	if len(m.filling) == 0 && !m.called && m.place() {
		for i := range m.recs {
			if m.free(i) {
				m.failf("record %d is ready, and nobody is called", m.recs[i].offset)
			}
		}
	}
}

func (m *batchModel) push(key string) {
	last := int64(-1)
	if n := len(m.recs); n > 0 {
		last = m.recs[n-1].offset
	}
	r := &batchRec{offset: last + 1, key: key}
	m.recs = append(m.recs, r)
	w, err := m.p.Push(r.offset, r, 10)
	if err != nil {
		m.failf("push: %v", err)
	}
	m.work(w)
	m.log = append(m.log, fmt.Sprintf("push %d %q", r.offset, key))
}

func (m *batchModel) collect(bytes int) {
	room := m.size - len(m.filling)
	ds := make([]*Delivery[*batchRec, int], room)
	for i := range ds {
		ds[i] = &Delivery[*batchRec, int]{}
	}
	m.called = false
	n, size, full := m.p.Collect(ds, room, bytes, len(m.filling) == 0, 1)
	m.log = append(m.log, fmt.Sprintf("collect %d of %d, %d bytes", n, room, bytes))
	if size != 10*n || size > bytes && n > 1 {
		m.failf("%d bytes of %d", size, bytes)
	}
	for _, d := range ds[:n] {
		r := d.Record()
		if i := int(r.offset); !m.free(i) {
			m.failf("record %d (%q, %d) out of turn", r.offset, r.key, r.where)
		}
		r.where = inFilling
		if r.attempt++; r.attempt != d.Attempt() {
			m.failf("record %d: attempt %d, want %d", r.offset, d.Attempt(), r.attempt)
		}
	}
	m.filling = append(m.filling, ds[:n]...)
	if n < room && !full && m.place() {
		for i := range m.recs {
			if m.free(i) {
				m.failf("record %d is ready, and was not collected", i)
			}
		}
	}
}

func (m *batchModel) seal() {
	if len(m.filling) == 0 {
		return
	}
	slices.SortFunc(m.filling, func(a, b *Delivery[*batchRec, int]) int { return int(a.Seq()) - int(b.Seq()) })
	m.p.Seal(m.filling)
	m.sealed = append(m.sealed, m.filling)
	for _, d := range m.filling {
		d.Record().where = len(m.sealed)
	}
	m.log = append(m.log, fmt.Sprintf("seal %d", len(m.filling)))
	m.filling, m.called = nil, true // whoever fills the next one looks first
}

// place reports whether a record more may be in flight.
func (m *batchModel) place() bool {
	n := len(m.filling)
	for _, ds := range m.sealed {
		n += len(ds)
	}
	return n < 2*m.size
}

func (m *batchModel) giveBack(ds []*Delivery[*batchRec, int]) {
	if len(ds) == 0 {
		return
	}
	var want []Status
	for _, d := range ds {
		r := d.Record()
		if r.where == isNacked {
			want = append(want, Nacked)
			continue
		}
		r.attempt--
		r.where = inQueue
		want = append(want, Revoked)
	}
	m.log = append(m.log, fmt.Sprintf("return %d", len(ds)))
	m.work(m.p.Return(ds, m.now))
	for i, d := range ds {
		if s := m.p.Status(d); s != want[i] {
			m.failf("returned: %v, want %v", s, want[i])
		}
	}
}

// end finishes a sealed batch; fate says how each record fares.
func (m *batchModel) end(at int, fate func() int) {
	ds := m.sealed[at]
	m.sealed[at] = nil
	var ends []End[*batchRec, int]
	var back []*Delivery[*batchRec, int]
	for _, d := range ds {
		r, e := d.Record(), End[*batchRec, int]{Delivery: d}
		switch fate() {
		case 0:
			if fate() < 2 { // somebody settles it before it is returned
				r.where, r.dueAt = isNacked, m.now+int64(fate())
				_, _, w := m.p.Settle(d, Verdict{Status: Nacked, DueAt: r.dueAt}, m.now)
				m.work(w)
			}
			back = append(back, d)
			continue
		case 1:
			r.where, r.dueAt = isNacked, m.now+int64(fate())
			e.Verdict = &Verdict{Status: Nacked, DueAt: r.dueAt}
		case 2:
			r.where = isSettled
			e.Verdict = &Verdict{Status: Rejected}
		default:
			r.where = isSettled
			e.Verdict = &Verdict{Status: Acked}
		}
		ends = append(ends, e)
	}
	m.log = append(m.log, fmt.Sprintf("end %d", at))
	m.work(m.p.EndBatch(ends, m.now))
	m.giveBack(back)
	if w, ok := m.p.Due(); ok && w <= m.now {
		m.work(m.p.Tick(m.now))
	}
}

// step does one operation of those that a byte chooses.
func (m *batchModel) step(op byte, next func() byte) {
	switch op % 8 {
	case 0, 1, 2:
		m.push([]string{"", "a", "b", "c"}[next()%4])
	case 3, 4:
		m.collect(10 * (1 + int(next()%8)))
	case 5:
		m.seal()
	case 6:
		if n := len(m.sealed); n > 0 {
			if at := int(next()) % n; m.sealed[at] != nil {
				m.end(at, func() int { return int(next() % 8) })
			}
		}
	default:
		if next()%4 == 0 && len(m.filling) > 0 {
			m.seal()
			last := len(m.sealed) - 1
			ds := m.sealed[last]
			m.sealed[last] = nil
			m.giveBack(ds)
			break
		}
		m.now += int64(next() % 4)
		m.work(m.p.Tick(m.now))
	}
	m.check()
}

// finish settles everything.
func (m *batchModel) finish() {
	for range 10 * (len(m.recs) + 1) {
		m.now += 10
		m.work(m.p.Tick(m.now))
		m.collect(1000)
		m.seal()
		for at, ds := range m.sealed {
			if ds != nil {
				m.end(at, func() int { return 7 })
			}
		}
		m.check()
	}
	for _, r := range m.recs {
		if r.where != isSettled {
			m.failf("record %d is not settled: %d", r.offset, r.where)
		}
	}
	drained, _ := m.p.Stop()
	select {
	case <-drained:
	default:
		m.failf("not drained")
	}
}

func runBatches(t testing.TB, order Order, choices []byte) {
	at := 0
	next := func() byte {
		if at++; at > len(choices) {
			return 7
		}
		return choices[at-1]
	}
	m := &batchModel{t: t, order: order, size: 6, p: New[int](Config[*batchRec]{
		Order: order, MaxInFlight: 12, Batches: true, Committed: true,
		Key: func(r *batchRec) []byte {
			if r.key == "" {
				return nil
			}
			return []byte(r.key)
		},
		Fingerprint: func(r *batchRec) uint32 { return uint32(r.offset) + 1 },
	})}
	for at < len(choices) {
		m.step(next(), next)
	}
	m.p.SetMaxInFlight(1 << 20) // so that nothing waits for a place
	m.finish()
}

func TestBatchModel(t *testing.T) {
	t.Parallel()
	seeds := uint64(600)
	if testing.Short() {
		seeds = 100
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 7))
		choices := make([]byte, 300)
		for i := range choices {
			choices[i] = byte(rng.Uint32())
		}
		runBatches(t, Order(seed%3), choices)
	}
}

func FuzzBatches(f *testing.F) {
	f.Add(byte(0), []byte{0, 0, 0, 0, 3, 7, 5, 6, 0, 1, 2, 3})
	f.Fuzz(func(t *testing.T, order byte, choices []byte) {
		if len(choices) > 500 {
			t.Skip()
		}
		runBatches(t, Order(order%3), choices)
	})
}
