package ackpolicy

import "slices"

// commitRoom is how many events of a partition's commits wait for a slow hook.
const commitRoom = 16

// hookQueue has events in their order. Settled ones, of which there is one for each record, are
// kept by value.
type hookQueue struct {
	calls   []hookCall
	settled []SettledEvent
	commits map[topicPartition]*[]hookCall // those that further ones of the partition join
	size    int                            // events; those of a partition's commits count as one
}

type topicPartition struct {
	topic     string
	partition int32
}

// hookCall is the call of a hook, the calls of Settled for some events in a row, or those for
// the latest commits of a partition.
type hookCall struct {
	name  string // "Hooks.Assigned"
	event any
	call  func(event any)
	done  chan struct{} // closed when the hook has returned; nil if nobody waits for it

	settled int  // the number of Settled events; 0 for another hook
	placed  bool // they have places of settledRoom

	of      topicPartition // for a commit
	commits *[]hookCall    // instead of all that
}

func (q *hookQueue) add(c hookCall, settled *SettledEvent) {
	if c.of.topic != "" {
		q.addCommit(c)
		return
	}
	q.size++
	clear(q.commits) // later ones come behind this event
	if settled != nil {
		q.settled = append(q.settled, *settled)
		if n := len(q.calls); n > 0 && q.calls[n-1].settled > 0 && q.calls[n-1].placed == c.placed {
			q.calls[n-1].settled++
			return
		}
	}
	q.calls = append(q.calls, c)
}

// addCommit keeps the latest events of a partition's commits: the last offset includes the earlier
// ones.
func (q *hookQueue) addCommit(c hookCall) {
	waiting := q.commits[c.of]
	if waiting == nil {
		if q.commits == nil {
			q.commits = map[topicPartition]*[]hookCall{}
		}
		waiting = &[]hookCall{}
		q.commits[c.of] = waiting
		q.calls = append(q.calls, hookCall{commits: waiting})
		q.size++
	}
	if len(*waiting) >= commitRoom {
		same := slices.IndexFunc(*waiting, func(o hookCall) bool { return o.name == c.name })
		*waiting = slices.Delete(*waiting, max(0, same), max(0, same)+1)
	}
	*waiting = append(*waiting, c)
}

// emptied returns the queue without its events, and without the memory that only a hook that
// did not return has made it take.
func (q *hookQueue) emptied() hookQueue {
	if cap(q.settled) > 2*settledRoom {
		return hookQueue{}
	}
	clear(q.calls)
	clear(q.settled)
	return hookQueue{calls: q.calls[:0], settled: q.settled[:0]}
}
