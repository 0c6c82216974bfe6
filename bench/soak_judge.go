package main

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// What soakEvents tell. Members write them into one pipe, each with a single
// write and before they go on: so they come in the order in which things happened.
const (
	evStart     = iota + 1 // a handler begins; A: attempt, B: key
	evEnd                  // it is about to return; A: intent, B: key
	evSettled              // A: status
	evBuried               // the dead letter is stored
	evAssigned             // Offset: the first record to come
	evReleased             // Offset: the watermark; A: released* bits
	evCommitted            // Offset: the next record to be read
	evKilled               // of the parent: the member's process is gone
	evSample               // Offset: heap, A: resident bytes, B: goroutines
	evFault                // a member saw something that must not be; A: which, see soakFaults
)

// Intents of evEnd.
const (
	toSettle = iota // ack or reject, by now or by the return
	toNack
	toSettleLate // by another goroutine, after the return
	toNackLate
)

// Bits of evReleased.
const (
	releasedLate   = 1 << iota // handlers outlived the drain
	releasedFailed             // the last commit was not confirmed
	releasedLeft               // records were left that wait, or that nobody settled
)

// Statuses of evSettled, as ackpolicy.Status has them.
const (
	statusAcked = iota + 1
	statusNacked
	statusRejected
)

var soakFaults = []string{"the subscriber or router failed", "AckSync failed on a record that is ours", "a message without a delivery"}

type soakEvent struct {
	Kind, Member byte
	Partition    int32
	Offset, A, B int64
}

const soakEventSize = 30 // far below PIPE_BUF: a write is whole

func (e soakEvent) encode() []byte {
	b := make([]byte, 0, soakEventSize)
	b = append(b, e.Kind, e.Member)
	b = binary.BigEndian.AppendUint32(b, uint32(e.Partition))
	for _, n := range []int64{e.Offset, e.A, e.B} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return b
}

func decodeSoakEvent(b []byte) soakEvent {
	return soakEvent{
		b[0], b[1], int32(binary.BigEndian.Uint32(b[2:])),
		int64(binary.BigEndian.Uint64(b[6:])), int64(binary.BigEndian.Uint64(b[14:])), int64(binary.BigEndian.Uint64(b[22:])),
	}
}

// judge follows the fate of every record. It remembers those between the oldest
// one that is not settled and the newest one, so its memory does not grow with time.
type judge struct {
	ordered    bool // by key
	partitions []*soakPartition

	deliveries, settled, rejected, repeatedKill, repeatedLeft int64
	kills, releases                                           int
	violations                                                int
	examples                                                  []string

	owed  map[soakRecord]bool // rejected, its letter not seen
	early map[soakRecord]int  // letters seen before their reject, or too many
}

type soakRecord struct {
	partition int32
	offset    int64
}

type soakPartition struct {
	owner     int // -1: nobody
	epoch     int
	low       int64 // below, everything is settled
	high      int64 // one more than the highest begun
	committed int64
	promised  int64 // the next owner must not begin below
	killed    bool  // the last owner was
	open      map[int64]*fate
	keys      map[int64]*keyState
	buried    [64]int64 // the last ones: see released
	nburied   int
}

// fate is what became of a record at its present owner.
type fate struct {
	attempts int64
	final    bool
	rejected bool // final once its letter is stored
	running  bool
	late     bool // nacked after its handler returned: later ones may have gone ahead
	since    time.Time
}

// keyState is where a key stands at the present owner.
type keyState struct {
	epoch   int
	last    int64
	running int64 // -1: none
	blocked int64 // nacked, nothing may overtake it; -1: none
}

func newJudge(partitions int, ordered bool) *judge {
	j := &judge{ordered: ordered, owed: map[soakRecord]bool{}, early: map[soakRecord]int{}}
	for range partitions {
		p := &soakPartition{owner: -1, open: map[int64]*fate{}, keys: map[int64]*keyState{}}
		for i := range p.buried {
			p.buried[i] = -1
		}
		j.partitions = append(j.partitions, p)
	}
	return j
}

func (j *judge) violation(format string, args ...any) {
	j.violations++
	if len(j.examples) < 50 {
		j.examples = append(j.examples, fmt.Sprintf(format, args...))
	}
}

func (j *judge) add(e soakEvent, now time.Time) {
	switch e.Kind {
	case evKilled:
		j.killed(int(e.Member))
		return
	case evFault:
		j.violation("member %d, %d/%d: %s", e.Member, e.Partition, e.Offset, soakFaults[e.A])
		return
	}
	p := j.partitions[e.Partition]
	switch e.Kind {
	case evStart:
		j.start(p, e, now)
	case evEnd:
		j.end(p, e)
	case evSettled:
		j.settle(p, e)
	case evBuried:
		p.buried[p.nburied%len(p.buried)] = e.Offset
		p.nburied++
		if f := p.open[e.Offset]; f != nil && f.rejected {
			j.final(p, f)
		}
	case evAssigned:
		j.assigned(p, e)
	case evReleased:
		j.released(p, e)
	case evCommitted:
		p.committed = max(p.committed, e.Offset)
	}
}

func (j *judge) start(p *soakPartition, e soakEvent, now time.Time) {
	j.deliveries++
	p.high = max(p.high, e.Offset+1)
	f := p.open[e.Offset]
	switch {
	case e.Offset < p.low || f != nil && f.final:
		j.violation("member %d: %d/%d delivered again after it was settled (attempt %d)", e.Member, e.Partition, e.Offset, e.A)
		return
	case int(e.Member) != p.owner:
		j.violation("member %d: %d/%d delivered, its partition is member %d's", e.Member, e.Partition, e.Offset, p.owner)
	case f != nil && f.running:
		j.violation("member %d: %d/%d delivered while its handler runs", e.Member, e.Partition, e.Offset)
	}
	if f == nil {
		f = &fate{since: now}
		p.open[e.Offset] = f
	}
	if f.attempts++; f.attempts != e.A {
		j.violation("member %d: %d/%d is attempt %d, wanted %d", e.Member, e.Partition, e.Offset, e.A, f.attempts)
		f.attempts = e.A
	}
	f.running = true
	late := f.late
	f.late = false
	if j.ordered {
		j.checkOrder(p, e, late)
	}
}

func (j *judge) checkOrder(p *soakPartition, e soakEvent, late bool) {
	k := p.keys[e.B]
	if k == nil || k.epoch != p.epoch {
		k = &keyState{epoch: p.epoch, last: -1, running: -1, blocked: -1}
		p.keys[e.B] = k
	}
	switch {
	case k.running >= 0:
		j.violation("member %d: %d/%d delivered while offset %d of its key runs", e.Member, e.Partition, e.Offset, k.running)
	case late:
	case k.blocked >= 0 && k.blocked != e.Offset:
		j.violation("member %d: %d/%d delivered before offset %d of its key, which was nacked", e.Member, e.Partition, e.Offset, k.blocked)
	case k.blocked < 0 && e.Offset <= k.last:
		j.violation("member %d: %d/%d delivered after offset %d of its key", e.Member, e.Partition, e.Offset, k.last)
	}
	k.running, k.last = e.Offset, max(k.last, e.Offset)
}

func (j *judge) end(p *soakPartition, e soakEvent) {
	if f := p.open[e.Offset]; f != nil {
		f.running = false
		f.late = e.A == toNackLate
	}
	k := p.keys[e.B]
	if k == nil || k.epoch != p.epoch {
		return
	}
	if k.running == e.Offset {
		k.running = -1
	}
	if e.A == toNack {
		k.blocked = e.Offset
	} else if k.blocked == e.Offset {
		k.blocked = -1
	}
}

func (j *judge) settle(p *soakPartition, e soakEvent) {
	f := p.open[e.Offset]
	if f == nil || f.final {
		j.violation("member %d: %d/%d settled a second time, or without a delivery", e.Member, e.Partition, e.Offset)
		return
	}
	switch e.A {
	case statusAcked:
		j.final(p, f)
	case statusRejected:
		f.rejected = true
		j.rejected++
		id := soakRecord{e.Partition, e.Offset}
		if j.early[id] > 0 {
			if j.early[id]--; j.early[id] == 0 {
				delete(j.early, id)
			}
		} else {
			j.owed[id] = true
		}
	}
}

func (j *judge) final(p *soakPartition, f *fate) {
	f.final = true
	j.settled++
	for {
		f := p.open[p.low]
		if f == nil || !f.final {
			return
		}
		delete(p.open, p.low)
		p.low++
	}
}

// letter tells of a dead letter that was read.
func (j *judge) letter(id soakRecord) {
	if j.owed[id] {
		delete(j.owed, id)
	} else {
		j.early[id]++
	}
}

// released is the end of an assignment that was not a kill.
func (j *judge) released(p *soakPartition, e soakEvent) {
	j.releases++
	if p.owner != int(e.Member) {
		j.violation("member %d released partition %d, which is member %d's", e.Member, e.Partition, p.owner)
		return
	}
	p.owner, p.killed = -1, false
	p.promised = e.Offset
	if e.A&releasedLate != 0 {
		j.violation("member %d, partition %d: handlers outlived the drain", e.Member, e.Partition)
	}
	if e.A&releasedFailed != 0 {
		j.violation("member %d, partition %d: the last commit was not confirmed", e.Member, e.Partition)
		p.promised = p.committed
	}
	for offset, f := range p.open {
		if f.running && e.A&releasedLate == 0 {
			j.violation("member %d released partition %d while the handler of offset %d runs", e.Member, e.Partition, offset)
		}
		f.running = false
	}
	// A letter may be stored just before its assignment ends: its record is left.
	if e.Offset < p.low && !slices.Contains(p.buried[:], e.Offset) {
		j.violation("member %d released partition %d at offset %d, though everything below %d is settled", e.Member, e.Partition, e.Offset, p.low)
	}
}

func (j *judge) killed(member int) {
	j.kills++
	for _, p := range j.partitions {
		if p.owner == member {
			p.owner, p.killed = -1, true
			p.promised = p.committed
		}
	}
}

// assigned begins a partition anew at an offset: what was settled from there on comes again.
func (j *judge) assigned(p *soakPartition, e soakEvent) {
	if p.owner >= 0 {
		j.violation("partition %d assigned to member %d, while it is member %d's", e.Partition, e.Member, p.owner)
	}
	if e.Offset < p.promised {
		j.violation("partition %d assigned to member %d from offset %d on, though %d was committed", e.Partition, e.Member, e.Offset, p.promised)
	}
	if e.Offset > p.low && (!p.killed || e.Offset > p.high) {
		// Hooks of the last owner may come late by a moment; but they never come after the next one's.
		j.violation("partition %d assigned to member %d from offset %d on: %d is not settled", e.Partition, e.Member, e.Offset, p.low)
	}
	repeated := max(0, p.low-e.Offset)
	for offset, f := range p.open {
		if offset >= e.Offset {
			if f.final {
				repeated++
			}
			delete(p.open, offset)
		} else if p.killed { // its settlement was committed, and the process gone before it told
			delete(p.open, offset)
		}
	}
	if p.killed {
		j.repeatedKill += repeated
		p.low = max(p.low, e.Offset)
	} else {
		j.repeatedLeft += repeated
	}
	p.low = min(p.low, e.Offset)
	p.owner, p.killed = int(e.Member), false
	p.epoch++
}

// stuck names records that have waited for too long to be settled.
func (j *judge) stuck(now time.Time, limit time.Duration) {
	for n, p := range j.partitions {
		for offset, f := range p.open {
			if !f.final && now.Sub(f.since) > limit {
				f.since = now
				j.violation("%d/%d is not settled since %v", n, offset, limit)
			}
		}
	}
}

// handled tells whether every record below the ends is settled.
func (j *judge) handled(ends []int64) bool {
	for n, p := range j.partitions {
		if p.low < ends[n] {
			return false
		}
	}
	return true
}

// finish looks for what was lost, after everything has come to an end.
func (j *judge) finish(ends []int64) (lost int64) {
	for n, p := range j.partitions {
		if p.low < ends[n] {
			lost += ends[n] - p.low - j.finals(p)
			j.violation("partition %d: offset %d is lost, and perhaps others up to %d", n, p.low, ends[n])
		}
	}
	for id := range j.owed {
		j.violation("%d/%d: rejected, and no dead letter", id.partition, id.offset)
	}
	for id, n := range j.early {
		j.violation("%d/%d: %d dead letters too many", id.partition, id.offset, n)
	}
	return lost
}

func (j *judge) finals(p *soakPartition) (n int64) {
	for _, f := range p.open {
		if f.final {
			n++
		}
	}
	return n
}

// remembered is how many records the judge holds.
func (j *judge) remembered() (n int) {
	for _, p := range j.partitions {
		n += len(p.open)
	}
	return n
}
