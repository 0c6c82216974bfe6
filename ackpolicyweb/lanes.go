package ackpolicyweb

import (
	"cmp"
	"slices"
	"strings"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// lane is records that wait for each other.
type lane struct {
	Name    string
	First   string // what is next, or runs: by @offset
	Link    string
	Status  string
	Tone    string
	Attempt string
	Waiting string // how many wait behind it
	Then    string // the one behind it

	first *ackpolicy.RecordState
	n     int
	then  int64
}

// lanesOf divides the records that are not settled into the lanes of their order, those first
// that have trouble, then the longest ones.
func (h *Handler) lanesOf(sub *subscription, p *ackpolicy.PartitionState, records []ackpolicy.RecordState, most int) (all []lane, more int) {
	if sub.of.Ordering == ackpolicy.Unordered {
		return nil, 0
	}
	found := map[string]int{}
	for i := range records {
		r, id := &records[i], "all"
		if sub.of.Ordering == ackpolicy.OrderByKey {
			if r.Key == nil {
				continue // it waits for no other record, or is not in memory and nothing is known of it
			}
			id = string(r.Key)
		}
		n, ok := found[id]
		if !ok {
			l := lane{first: r, then: -1, Name: "the partition"}
			if sub.of.Ordering == ackpolicy.OrderByKey {
				l.Name = strings.TrimPrefix(h.key(r.Key), "key ")
			}
			found[id] = len(all)
			all = append(all, l)
			continue
		}
		if all[n].n++; all[n].then < 0 {
			all[n].then = r.Offset
		}
	}
	if len(all) == 1 && sub.of.Ordering == ackpolicy.OrderByPartition {
		all[0].n = p.Unsettled - 1 // also those beyond the records at hand
	}
	slices.SortStableFunc(all, func(a, b lane) int {
		return cmp.Or(rank(p, b.first)-rank(p, a.first), b.n-a.n)
	})
	if len(all) > most {
		more, all = len(all)-most, all[:most]
	}
	for i := range all {
		l := &all[i]
		l.First, l.Link = at(l.first.Offset), link(sub.owner, sub.Topic, p.Partition, l.first.Offset)
		l.Status, l.Tone, l.Waiting = l.first.Status.String(), toneOf(p, l.first), count(l.n)
		l.Attempt = count(l.first.Attempt)
		if l.then >= 0 {
			l.Then = at(l.then)
		}
	}
	return all, more
}
