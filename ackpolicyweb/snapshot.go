package ackpolicyweb

import (
	"time"

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// inOverview is how many records of a partition the overview looks at.
const inOverview = 64

// snapshot is what all pages show that are open at a time.
type snapshot struct {
	at            time.Time
	states        []ackpolicy.State
	health        []ackpolicy.Health
	subscriptions []subscription
	partitions    int
}

// subscription is one of any Subscriber.
type subscription struct {
	*ackpolicy.SubscriptionState
	of      *ackpolicy.State
	number  int      // of all
	owner   int      // the Subscriber's
	windows []window // of its partitions
	rate    float64  // records settled per second; negative: not known yet
}

// window is what a partition holds.
type window struct {
	records  []ackpolicy.RecordState
	sections []ackpolicy.Section
}

// refresh is how often the pages change.
func (h *Handler) refresh(partitions int) time.Duration {
	switch {
	case h.options.Refresh > 0:
		return h.options.Refresh
	case partitions > 100:
		return 2 * time.Second
	}
	return time.Second
}

// snapshot returns the last one, if it is young enough: many pages cost as much as one.
// h.mu is locked.
func (h *Handler) snapshot() *snapshot {
	if h.last != nil && time.Since(h.last.at) < h.refresh(h.last.partitions)*4/5 {
		return h.last
	}
	s := &snapshot{at: time.Now()}
	for _, sub := range h.options.Subscribers {
		s.states, s.health = append(s.states, sub.State()), append(s.health, sub.Health())
	}
	for i := range s.states {
		st := &s.states[i]
		for j := range st.Subscriptions {
			sub := subscription{SubscriptionState: &st.Subscriptions[j], of: st, number: len(s.subscriptions), owner: i}
			for k := range sub.Partitions {
				var w window
				if p := &sub.Partitions[k]; p.Unsettled > 0 {
					w.records, w.sections, _ = h.options.Subscribers[i].Window(sub.Topic, p.Partition, inOverview)
				}
				sub.windows = append(sub.windows, w)
			}
			sub.rate = h.last.rate(s, &sub)
			s.partitions += len(sub.Partitions)
			s.subscriptions = append(s.subscriptions, sub)
		}
	}
	h.last = s
	h.views = map[string]rendered{}
	return s
}

// forget makes the next page show what is now.
func (h *Handler) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = nil
}

// rate returns how many records a subscription has settled per second since s.
func (s *snapshot) rate(now *snapshot, sub *subscription) float64 {
	if s == nil || sub.number >= len(s.subscriptions) {
		return -1
	}
	before := &s.subscriptions[sub.number]
	if before.owner != sub.owner || before.Topic != sub.Topic || before.MemberID != sub.MemberID {
		return -1
	}
	was := map[int32]*ackpolicy.PartitionState{}
	for i := range before.Partitions {
		was[before.Partitions[i].Partition] = &before.Partitions[i]
	}
	n := int64(0)
	for i := range sub.Partitions {
		p := &sub.Partitions[i]
		if b := was[p.Partition]; b != nil && b.Since.Equal(p.Since) {
			n += max(0, (p.Next-int64(p.Unsettled))-(b.Next-int64(b.Unsettled)))
		}
	}
	return float64(n) / now.at.Sub(s.at).Seconds()
}

// find returns a partition of a snapshot.
func (s *snapshot) find(q *query) (*subscription, *ackpolicy.PartitionState) {
	for i := range s.subscriptions {
		sub := &s.subscriptions[i]
		if sub.owner != q.subscriber || sub.Topic != q.topic {
			continue
		}
		for j := range sub.Partitions {
			if sub.Partitions[j].Partition == q.partition {
				return sub, &sub.Partitions[j]
			}
		}
	}
	return nil, nil
}
