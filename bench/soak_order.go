package main

import "slices"

// keyState is where a key stands at the present owner of its partition.
type keyState struct {
	epoch   int
	last    int64 // the highest begun
	running []int64
	nacked  []int64 // by their handlers, in order: nothing may overtake them
}

// key returns the state of a key, a new one for a new owner.
func (p *soakPartition) key(key int64) *keyState {
	k := p.keys[key]
	if k == nil || k.epoch != p.epoch {
		k = &keyState{epoch: p.epoch, last: -1}
		p.keys[key] = k
	}
	return k
}

func (k *keyState) end(offset int64, nacked bool) {
	if i := slices.Index(k.running, offset); i >= 0 {
		k.running = slices.Delete(k.running, i, i+1)
	}
	i, held := slices.BinarySearch(k.nacked, offset)
	switch {
	case nacked && !held:
		k.nacked = slices.Insert(k.nacked, i, offset)
	case !nacked && held:
		k.nacked = slices.Delete(k.nacked, i, i+1)
	}
}

// checkOrder looks at a delivery that begins. late: its record was nacked after its
// handler had returned, so that later ones may have been handled before.
func (j *judge) checkOrder(p *soakPartition, e soakEvent, late bool) {
	k := p.key(e.B)
	if len(k.running) > 0 {
		j.violation("member %d: %d/%d delivered while offset %d of its key runs", e.Member, e.Partition, e.Offset, k.running[0])
	}
	switch {
	case len(k.nacked) > 0 && e.Offset > k.nacked[0]:
		j.violation("member %d: %d/%d delivered before offset %d of its key, which was nacked", e.Member, e.Partition, e.Offset, k.nacked[0])
	case late || len(k.nacked) > 0 && e.Offset == k.nacked[0]:
	case e.Offset <= k.last:
		j.violation("member %d: %d/%d delivered after offset %d of its key", e.Member, e.Partition, e.Offset, k.last)
	}
	k.running = append(k.running, e.Offset)
	k.last = max(k.last, e.Offset)
}
