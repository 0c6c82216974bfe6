package main

import (
	"fmt"
	"time"
)

// judge follows the fate of every record. It remembers those between the oldest
// one that is not settled and committed and the newest one, so its memory does not grow with time.
type judge struct {
	ordered    bool // by key
	partitions []*soakPartition
	letters    map[soakRecord]letterCount

	deliveries, settled, rejected        int64
	repeatedKill, repeatedUnmarked, kept int64       // settled records that came again; those with marks, at each assignment
	kills                                map[int]int // by member
	assignments, violations              int
	examples                             []string
}

type soakRecord struct {
	partition int32
	offset    int64
}

type soakPartition struct {
	number    int32
	owner     int // nobody: -1
	before    int // the last owner, whose hooks may still be under way
	epoch     int
	low       int64 // below, everything is settled
	high      int64 // one more than the highest begun
	committed int64
	forgotten int64 // below, everything is settled and committed: no fate is kept
	promised  int64 // the next owner must not begin below
	killed    bool  // the last owner was
	unmarked  int64 // settled records that may come again: releases had no room for their marks
	letters   int64 // rejected ones that may come again: their letters were not stored before the release, it says
	open      map[int64]*fate
	owing     map[int64]bool // a release passed them, and nothing has reported yet that they are settled
	keys      map[int64]*keyState
}

// fate is what became of a record at its last owner.
type fate struct {
	epoch    int // of the owner
	attempts int64
	running  bool
	verdict  int64 // what its handler said of the latest attempt; 0: it has not ended
	status   int64 // what the latest attempt was settled as
	late     bool  // settled after its handler returned: if nacked, later ones may have gone ahead
	final    bool
	stored   bool // AckSync said so
	again    bool // it is final, and may come again: its owner was killed
	doubtful bool // its owner is gone, and may have settled it
	since    time.Time
}

const nobody = -1

func newJudge(partitions int, ordered bool) *judge {
	j := &judge{ordered: ordered, letters: map[soakRecord]letterCount{}, kills: map[int]int{}}
	for n := range partitions {
		j.partitions = append(j.partitions, &soakPartition{
			number: int32(n), owner: nobody, before: nobody,
			open: map[int64]*fate{}, owing: map[int64]bool{}, keys: map[int64]*keyState{},
		})
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
	case evDeadLettered:
		j.storedLetter(p, e)
	case evAssigned:
		j.assigned(p, e)
	case evReleased:
		j.released(p, e)
	case evCommitted:
		p.commit(e.Offset)
	}
}

func (j *judge) start(p *soakPartition, e soakEvent, now time.Time) {
	j.deliveries++
	p.high = max(p.high, e.Offset+1)
	f := p.open[e.Offset]
	switch settled := f != nil && (f.final || f.doubtful); {
	case settled && j.mayComeAgain(p, f):
		f, p.low = nil, min(p.low, e.Offset)
	case settled, f == nil && e.Offset < p.low:
		j.violation("member %d: %d/%d delivered again after it was settled (attempt %d)", e.Member, e.Partition, e.Offset, e.A)
		return
	}
	switch {
	case int(e.Member) != p.owner:
		j.violation("member %d: %d/%d delivered, its partition is %s", e.Member, e.Partition, e.Offset, whose(p.owner))
	case f != nil && f.running:
		j.violation("member %d: %d/%d delivered while its handler runs", e.Member, e.Partition, e.Offset)
	case f != nil && f.verdict != statusNacked:
		j.violation("member %d: %d/%d delivered again, and was not nacked", e.Member, e.Partition, e.Offset)
	}
	if f == nil {
		// Attempts are counted on from the owner before, whose fates are forgotten here.
		f = &fate{epoch: p.epoch, since: now, attempts: max(1, e.A) - 1}
		p.open[e.Offset] = f
	}
	if f.attempts++; f.attempts != e.A {
		j.violation("member %d: %d/%d is attempt %d, wanted %d", e.Member, e.Partition, e.Offset, e.A, f.attempts)
		f.attempts = e.A
	}
	late := f.late
	f.running, f.verdict, f.status, f.late = true, 0, 0, false
	if j.ordered {
		j.checkOrder(p, e, late)
	}
}

func (j *judge) end(p *soakPartition, e soakEvent) {
	p.key(e.B).end(e.Offset, e.A == statusNacked)
	if f := p.open[e.Offset]; f != nil {
		f.running, f.verdict = false, e.A&^(settledLate|settledStored)
		f.late, f.stored = e.A&settledLate != 0, e.A&settledStored != 0
		j.checkVerdict(p, e.Offset, f)
	}
}

func (j *judge) settle(p *soakPartition, e soakEvent) {
	if e.A == statusRejected {
		j.rejected++
		j.reject(soakRecord{e.Partition, e.Offset})
	}
	done := e.A
	if e.A != statusAcked { // a rejected record is done once its letter is stored
		done = 0
	}
	if j.belated(p, e, done) {
		return
	}
	f := p.open[e.Offset]
	switch {
	case int(e.Member) != p.owner && int(e.Member) != p.before:
		j.violation("member %d: %d/%d settled, its partition is %s", e.Member, e.Partition, e.Offset, whose(p.owner))
		return
	case e.A == statusNacked && (f == nil || e.B < f.attempts):
		return // a nacked record may come again, and be done, before the hook reports the nack
	case f == nil || f.final || e.B != f.attempts:
		j.violation("member %d: %d/%d settled a second time, or without a delivery (attempt %d %s)", e.Member, e.Partition, e.Offset, e.B, soakStatuses[e.A])
		return
	}
	f.status = e.A
	j.checkVerdict(p, e.Offset, f)
	if e.A == statusAcked {
		j.final(p, f)
	}
}

// mayComeAgain reports whether a record may be delivered that is settled, or may be. Its owner was killed and may not have
// stored that; or the release counts it as one that comes again.
func (j *judge) mayComeAgain(p *soakPartition, f *fate) bool {
	switch {
	case f.stored:
		return false
	case f.doubtful:
		return true
	case f.again:
		j.repeatedKill++
		return true
	case f.status == statusRejected && p.letters > 0:
		p.letters--
		return true
	case p.unmarked > 0:
		p.unmarked--
		j.repeatedUnmarked++
		return true
	}
	return false
}

// checkVerdict compares what the handler said with what it came to.
func (j *judge) checkVerdict(p *soakPartition, offset int64, f *fate) {
	if f.status != 0 && f.verdict != 0 && f.status != f.verdict {
		j.violation("%d/%d was %s, wanted %s", p.number, offset, soakStatuses[f.status], soakStatuses[f.verdict])
	}
}

// final takes note of a record that is done, once its letter is stored if it was rejected.
func (j *judge) final(p *soakPartition, f *fate) {
	f.final, f.doubtful = true, false
	j.settled++
	p.advance()
}

// commit takes note of a stored offset.
func (p *soakPartition) commit(offset int64) {
	p.committed = max(p.committed, offset)
	p.advance()
}

// advance moves the mark below which everything is settled, and forgets what is committed, too.
func (p *soakPartition) advance() {
	for {
		f := p.open[p.low]
		// What a member may have settled that is gone was settled if it is committed past, and did not come again.
		if f == nil || !f.final && !(f.doubtful && p.low < p.committed) {
			break
		}
		p.low++
	}
	for ; p.forgotten < min(p.low, p.committed); p.forgotten++ {
		delete(p.open, p.forgotten)
	}
}

// stuck names records that have waited for too long to be settled.
func (j *judge) stuck(now time.Time, limit time.Duration) {
	for _, p := range j.partitions {
		for offset, f := range p.open {
			if !f.final && now.Sub(f.since) > limit {
				f.since = now
				j.violation("%d/%d is not settled since %v", p.number, offset, limit)
			}
		}
	}
}

// handled reports whether every record below the ends is settled.
func (j *judge) handled(ends []int64) bool {
	for n, p := range j.partitions {
		if p.low < ends[n] || len(p.owing) > 0 {
			return false
		}
	}
	return true
}

// stored reports whether the offsets that members reported have come to the ends.
func (j *judge) stored(ends []int64) bool {
	for n, p := range j.partitions {
		if p.committed < ends[n] {
			return false
		}
	}
	return true
}

// finish looks for what was lost, after everything has come to an end.
func (j *judge) finish(ends []int64) (lost int64) {
	for n, p := range j.partitions {
		missing := int64(len(p.owing))
		for offset := p.low; offset < ends[n]; offset++ {
			if f := p.open[offset]; f == nil || !f.final {
				missing++
			}
		}
		if missing > 0 {
			j.violation("partition %d: %d records lost, the first of them at %d", n, missing, p.firstLost())
		}
		lost += missing
	}
	j.checkLetters()
	return lost
}

func (p *soakPartition) firstLost() int64 {
	first := p.low
	for offset := range p.owing {
		first = min(first, offset)
	}
	return first
}

// remembered is how many records the judge holds.
func (j *judge) remembered() (n int) {
	for _, p := range j.partitions {
		n += len(p.open) + len(p.owing)
	}
	return n
}
