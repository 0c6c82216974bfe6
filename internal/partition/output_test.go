package partition

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
)

// put is one output of a record: the attempt tells deliveries of the record apart.
type put struct {
	offset  int64
	attempt int // 0 for a letter
	n       int
}

// broker is what Kafka has: a position, and the output of committed transactions.
type broker struct {
	offset int64
	text   string
	log    []put
	last   map[int64][]put // what each record put out when it was settled last
	gaveUp map[int64]bool  // rejected: those behind it with its key do not wait for its letter
}

// member is one owner of the partition in the model.
type member struct {
	t       *testing.T
	rnd     *rand.Rand
	b       *broker
	records int64
	p       *Partition[int64, any]
	next    int64
	running []*Delivery[int64, any]
	letters []*Delivery[int64, any]
	closed  bool
	held    map[*Delivery[int64, any]][]put
}

func modelPlace(offset int64) ledger.Place { return ledger.Place{Topic: "t", Offset: offset} }

func newMember(t *testing.T, rnd *rand.Rand, b *broker, records int64) *member {
	m := &member{t: t, rnd: rnd, b: b, records: records, next: b.offset, held: map[*Delivery[int64, any]][]put{}}
	cfg := Config[int64]{
		Order: ByKey, MaxInFlight: 8, Committed: true, Output: true, Start: b.offset, Bytes: &Bytes{},
		Key:         func(r int64) []byte { return []byte{byte(r % 5)} },
		Fingerprint: modelPrint,
	}
	if b.text != "" {
		l, err := ledger.Decode(modelPlace(b.offset), b.text)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Marks = l.Blocks
		for _, o := range l.Open {
			cfg.Open = append(cfg.Open, Open{Offset: o.Offset, Attempts: o.Attempts, Check: o.Check})
		}
	}
	m.p = New[any](cfg)
	return m
}

func modelPrint(offset int64) uint32 { return uint32(offset)*2654435761 + 1 }

// step does one thing that a running member may do.
func (m *member) step() {
	switch m.rnd.IntN(6) {
	case 0:
		if m.next < m.records {
			if _, err := m.p.Push(m.next, m.next, 1); err != nil {
				m.t.Fatal(err)
			}
			m.next++
		}
	case 1:
		if d := new(Delivery[int64, any]); len(m.running) < 8 {
			if _, ok := m.p.Take(d); ok {
				m.running = append(m.running, d)
			}
		}
	case 2:
		if len(m.running) > 0 {
			m.publish(m.running[m.rnd.IntN(len(m.running))])
		}
	case 3:
		if len(m.running) > 0 {
			i := m.rnd.IntN(len(m.running))
			d := m.running[i]
			m.running = slices.Delete(m.running, i, i+1)
			m.settle(d)
		}
	case 4:
		if len(m.letters) > 0 {
			d := m.letters[0]
			m.letters = m.letters[1:]
			if !m.p.HoldLetter(d, put{offset: d.Offset()}, 10) {
				m.t.Fatal("the letter is not held")
			}
			m.p.Release(d)
			m.b.last[d.Offset()] = []put{{offset: d.Offset()}}
		}
	}
}

func (m *member) publish(d *Delivery[int64, any]) {
	var items []Output
	for n := range 1 + m.rnd.IntN(2) {
		items = append(items, put{d.Offset(), d.Attempt(), n})
	}
	held := m.p.Hold(d, items, 10)
	if held != (m.p.Status(d) == Pending) {
		m.t.Fatalf("Hold: %v with the status %v", held, m.p.Status(d))
	}
	if held {
		for _, i := range items {
			m.held[d] = append(m.held[d], i.(put))
		}
	}
}

func (m *member) settle(d *Delivery[int64, any]) {
	v := Verdict{Status: Acked}
	switch m.rnd.IntN(8) {
	case 0:
		v.Status = Nacked
	case 1:
		v.Status, v.Hold = Rejected, true
		m.letters = append(m.letters, d)
		m.b.gaveUp[d.Offset()] = true
	case 2: // by a verb, before the handler returns; what it publishes then is refused
		m.p.Settle(d, v, 0)
		m.publish(d)
	case 3:
		m.p.Discard(d)
		delete(m.held, d)
	}
	if v.Status == Acked {
		m.b.last[d.Offset()] = m.held[d]
	}
	next := new(Delivery[int64, any])
	if _, ok, _ := m.p.FinishAndTake(d, &v, 0, next); ok {
		m.running = append(m.running, next)
	}
}

// commit writes a transaction with whatever outcome. It returns false if the member is over.
func (m *member) commit() bool {
	s := m.p.Snapshot()
	l := &ledger.Ledger{Blocks: s.Blocks}
	for _, o := range s.Open {
		l.Open = append(l.Open, ledger.Open{Offset: o.Offset, Attempts: o.Attempts, Check: o.Check})
	}
	text, kept := ledger.Encode(modelPlace(s.Offset), l, 20+m.rnd.IntN(200))
	s.Keep(kept.Blocks)
	if s.Left() > 0 {
		m.p.Crowded()
		return true
	}
	if m.rnd.IntN(3) == 0 && !m.closed {
		m.step() // what happens now is the next transaction's
		m.step()
	}
	stored, alive := m.rnd.IntN(4) > 0, m.rnd.IntN(8) > 0
	if stored {
		m.b.offset, m.b.text = s.Offset, text
		for _, o := range s.Output() {
			m.b.log = append(m.b.log, o.(put))
		}
		if alive {
			m.p.Committed(s, false)
		}
	}
	return alive
}

// TestOutputOnce attacks the invariant of output.go: transactions that fail or whose response is lost, owners that die at
// any time, marks that do not fit. In the end each record's output, of one attempt, is there once, in the order of its key.
func TestOutputOnce(t *testing.T) {
	for seed := range uint64(300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			const records = 120
			b := &broker{last: map[int64][]put{}, gaveUp: map[int64]bool{}}
			m := newMember(t, rnd, b, records)
			for b.offset < records {
				for range rnd.IntN(40) {
					m.step()
				}
				alive := m.commit()
				if !alive || rnd.IntN(30) == 0 { // it dies, or the partition is revoked
					m.p.Close()
					m.closed = true
					if alive && rnd.IntN(2) == 0 {
						m.commit()
					}
					m.p.Drop()
					if n := m.p.cfg.Bytes.Load(); n != 0 && m.next == m.records && len(m.running) == 0 {
						t.Errorf("%d bytes are counted after the end", n)
					}
					m = newMember(t, rnd, b, records)
				}
			}
			got, last := map[int64][]put{}, map[int64]int64{}
			for _, o := range b.log {
				got[o.offset] = append(got[o.offset], o)
				if key := o.offset % 5; !b.gaveUp[o.offset] {
					if o.offset < last[key] {
						t.Fatalf("%+v comes after the output of %d", o, last[key])
					}
					last[key] = o.offset
				}
			}
			for offset := range int64(records) {
				if !slices.Equal(got[offset], b.last[offset]) {
					t.Fatalf("record %d has put out %v, want %v", offset, got[offset], b.last[offset])
				}
			}
		})
	}
}

// TestOutputOfAckCumulative wants the output of records that are acked together in their order.
func TestOutputOfAckCumulative(t *testing.T) {
	p := New[any](Config[int64]{Order: Unordered, MaxInFlight: 3, Committed: true, Output: true, Bytes: &Bytes{}, Fingerprint: modelPrint})
	var all []*Delivery[int64, any]
	for offset := range int64(3) {
		if _, err := p.Push(offset, offset, 1); err != nil {
			t.Fatal(err)
		}
	}
	for offset := range int64(3) {
		d := new(Delivery[int64, any])
		if _, ok := p.Take(d); !ok {
			t.Fatal("nothing is handed out")
		}
		p.Hold(d, []Output{put{offset: offset}}, 1)
		all = append(all, d)
	}
	for _, d := range all { // their handlers return, and settle nothing
		p.FinishAndTake(d, nil, 0, new(Delivery[int64, any]))
	}
	p.AckCumulative(all[2])
	if got, want := p.Snapshot().Output(), []Output{put{offset: 0}, put{offset: 1}, put{offset: 2}}; !slices.Equal(got, want) {
		t.Errorf("output %v, want %v", got, want)
	}
}

// A snapshot that is being sent when the partition is dropped keeps its output: its offset without it would lose that.
func TestSnapshotKeepsItsOutput(t *testing.T) {
	t.Parallel()
	m := newMember(t, rand.New(rand.NewPCG(1, 1)), &broker{}, 1)
	if _, err := m.p.Push(0, 0, 1); err != nil {
		t.Fatal(err)
	}
	d := new(Delivery[int64, any])
	m.p.Take(d)
	m.p.Hold(d, []Output{"output"}, 1)
	m.p.FinishAndTake(d, &Verdict{Status: Acked}, 0, new(Delivery[int64, any]))
	s := m.p.Snapshot()
	m.p.Close()
	m.p.Drop()
	if got := s.Output(); s.Offset != 1 || !slices.Equal(got, []Output{"output"}) {
		t.Errorf("offset %d with the output %v", s.Offset, got)
	}
}
