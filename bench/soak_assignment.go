package main

import (
	"fmt"
	"slices"
)

func whose(owner int) string {
	if owner == nobody {
		return "nobody's"
	}
	return fmt.Sprintf("member %d's", owner)
}

// assigned begins a partition anew at an offset: what was settled from there on comes again.
func (j *judge) assigned(p *soakPartition, e soakEvent) {
	j.assignments++
	if p.owner != nobody {
		j.violation("partition %d assigned to member %d, while it is member %d's", e.Partition, e.Member, p.owner)
	}
	if e.Offset < p.promised {
		j.violation("partition %d assigned to member %d from offset %d on, though %d was committed", e.Partition, e.Member, e.Offset, p.promised)
	}
	if e.Offset > p.high {
		j.violation("partition %d assigned to member %d from offset %d on: %d was never delivered", e.Partition, e.Member, e.Offset, p.high)
	}
	for offset := p.low; offset < e.Offset; offset++ {
		j.passed(p, offset)
	}
	repeated := max(0, p.low-e.Offset)
	for offset, f := range p.open {
		if offset >= e.Offset && f.final {
			repeated++
		}
	}
	clear(p.open)
	if p.killed {
		j.repeatedKill += repeated
	} else {
		j.repeatedLeft += repeated
	}
	p.low, p.top = e.Offset, e.Offset
	p.owner, p.killed = int(e.Member), false
	p.epoch++
}

// passed looks at a record that the last owner committed past.
func (j *judge) passed(p *soakPartition, offset int64) {
	f := p.open[offset]
	switch {
	case f != nil && f.final:
	case f != nil && p.killed:
		// It may have been settled, and the process gone before it told; unless it was not to be.
		if !f.running && f.verdict == statusNacked && !f.late {
			j.violation("partition %d: a commit passed offset %d, which was nacked", p.number, offset)
			p.owing[offset] = true
		}
	default:
		p.owing[offset] = true // a hook may be under way; or it is lost
	}
}

// belated takes note of what a hook tells of the last owner's records once there is a
// new one: its goroutine came to it only now. What the release did not pass comes again.
func (j *judge) belated(p *soakPartition, e soakEvent, done bool) bool {
	if p.owing[e.Offset] && done {
		delete(p.owing, e.Offset)
		j.settled++
		return true
	}
	return p.owner != nobody && int(e.Member) != p.owner && int(e.Member) == p.before
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
	}
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
	// A letter may be stored just before its assignment ends: its record is left.
	if e.Offset < p.low && !slices.Contains(p.buried[:], e.Offset) {
		j.violation("member %d released partition %d at offset %d, though everything below %d is settled", e.Member, e.Partition, e.Offset, p.low)
	}
	// What is settled comes again only where a record that was begun before it is left.
	if p.open[e.Offset] == nil && p.low <= e.Offset && e.Offset < p.top && !late {
		j.violation("member %d released partition %d at offset %d, which it has not begun, though it has settled offset %d", e.Member, e.Partition, e.Offset, p.top-1)
	}
}

func (j *judge) killed(member int) {
	j.kills[member]++
	for _, p := range j.partitions {
		if p.owner == member {
			p.owner, p.before, p.killed = nobody, nobody, true
			p.promised = p.committed
		}
	}
}
