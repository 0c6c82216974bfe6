package main

import "fmt"

func whose(owner int) string {
	if owner == nobody {
		return "nobody's"
	}
	return fmt.Sprintf("member %d's", owner)
}

// assigned begins a new assignment of a partition at an offset. What is settled behind it has its mark, and does not come again.
func (j *judge) assigned(p *soakPartition, e soakEvent) {
	j.assignments++
	if p.owner != nobody {
		j.violation("partition %d assigned to member %d, while it is member %d's", e.Partition, e.Member, p.owner)
	}
	if e.Offset < p.promised {
		j.violation("partition %d assigned to member %d from offset %d on, though %d was committed", e.Partition, e.Member, e.Offset, p.promised)
		p.low, p.forgotten, p.committed = min(p.low, e.Offset), min(p.forgotten, e.Offset), e.Offset
		clear(p.open)
	}
	if e.Offset > p.high {
		j.violation("partition %d assigned to member %d from offset %d on: %d was never delivered", e.Partition, e.Member, e.Offset, p.high)
	}
	for offset := p.low; offset < e.Offset; offset++ {
		j.passed(p, offset)
	}
	for offset, f := range p.open {
		switch {
		case offset < e.Offset:
			delete(p.open, offset)
		case f.final:
			if !f.again {
				j.kept++
			}
		case f.mayBeSettled():
			f.running, f.doubtful = false, true
		default:
			delete(p.open, offset)
		}
	}
	p.low, p.forgotten = max(p.low, e.Offset), max(p.forgotten, e.Offset)
	p.owner, p.killed = int(e.Member), false
	p.epoch++
	p.commit(e.Offset)
}

// mayBeSettled reports, of a record whose owner is gone, whether that may have settled it without a word of it, or the word
// is under way.
func (f *fate) mayBeSettled() bool { return f.running || f.verdict != statusNacked }

// passed looks at a record that the last owner committed past.
func (j *judge) passed(p *soakPartition, offset int64) {
	f := p.open[offset]
	switch {
	case f != nil && (f.final || f.doubtful):
	case f != nil && p.killed:
		// It may have been settled, and the process gone before it reported that; unless it was not to be.
		if !f.running && f.verdict == statusNacked && !f.late {
			j.violation("partition %d: a commit passed offset %d, which was nacked", p.number, offset)
			p.owing[offset] = true
		}
	default:
		p.owing[offset] = true // a hook may be under way; or it is lost
	}
}

// belated takes note of what a hook reports about the last owner's records once there is a
// new one: its goroutine came to it only now. done: the record is settled for good, as that; else 0.
func (j *judge) belated(p *soakPartition, e soakEvent, done int64) bool {
	if p.owing[e.Offset] && done != 0 {
		delete(p.owing, e.Offset)
		j.settled++
		return true
	}
	if p.owner == nobody || int(e.Member) == p.owner || int(e.Member) != p.before {
		return false
	}
	f := p.open[e.Offset]
	switch {
	case f == nil || done == 0 || f.final:
	case f.doubtful:
		f.status = done
		j.final(p, f)
	case !j.mayComeAgain(p, &fate{status: done}):
		j.violation("member %d: %d/%d delivered again after member %d had settled it", p.owner, e.Partition, e.Offset, e.Member)
	}
	return true
}

// released is the end of an assignment that was not a kill.
func (j *judge) released(p *soakPartition, e soakEvent) {
	if p.owner != int(e.Member) {
		j.violation("member %d released partition %d, which is %s", e.Member, e.Partition, whose(p.owner))
		return
	}
	p.owner, p.before, p.killed = nobody, p.owner, false
	p.promised = e.Offset
	if e.A&releasedFailed != 0 {
		j.violation("member %d, partition %d: the last commit was not confirmed", e.Member, e.Partition)
		p.promised = p.committed
		p.forgive()
	} else {
		p.commit(e.Offset)
	}
	p.unmarked += e.B
	p.letters += e.A / releasedLetter
	late := e.A&releasedLate != 0
	if late {
		j.violation("member %d, partition %d: handlers outlived the drain", e.Member, e.Partition)
	}
	for offset, f := range p.open {
		if f.running && !late {
			j.violation("member %d released partition %d while the handler of offset %d runs", e.Member, e.Partition, offset)
		}
		f.running = false
	}
	// A letter may be stored just before its assignment ends: then its record is left, and counted.
	if f := p.open[e.Offset]; e.Offset < p.low && !(f != nil && f.status == statusRejected && p.letters > 0) {
		j.violation("member %d released partition %d at offset %d, though everything below %d is settled", e.Member, e.Partition, e.Offset, p.low)
	}
}

// forgive lets come again what the present owner has settled: it was not able to store all of it.
func (p *soakPartition) forgive() {
	for _, f := range p.open {
		if f.final && f.epoch == p.epoch && !f.stored {
			f.again = true
		}
	}
}

func (j *judge) killed(member int) {
	j.kills[member]++
	for _, p := range j.partitions {
		if p.owner == member {
			p.owner, p.before, p.killed = nobody, nobody, true
			p.promised = p.committed
			p.forgive()
		}
	}
}
