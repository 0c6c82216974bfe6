package consumer

import (
	"errors"
	"maps"
	"time"

	"github.com/IBM/sarama"
)

// The leader of a group looks for added partitions and has them assigned. If a static member that
// was the leader comes back, it gets its old assignment, and sarama does not learn that it is the
// leader: then nobody looks. So static members check that all partitions of their topics are assigned.

var errUncovered = errors.New("the group has partitions of a topic assigned to nobody, as happens when they are added while its leader, a static member, is " +
	"away: this member leaves the group and joins it again, so that they are assigned")

// coverage has what a membership knows of a topic about this. Only the goroutine of the topic watch uses it.
type coverage struct {
	partitions int // how many are known to be assigned
	missing    time.Time
}

// covers is called with the number of each topic's partitions each time the topics are looked at.
func (h *groupHandler) covers(partitions map[string]int) {
	live := h.live.Load()
	if h.s.cfg.Sarama.Consumer.Group.InstanceId == "" || live == nil {
		return
	}
	maps.DeleteFunc(partitions, func(topic string, n int) bool { return n <= h.coverage[topic].partitions })
	if len(partitions) == 0 {
		return
	}
	assigned, err := h.describe(live.session.MemberID())
	for topic, n := range partitions {
		h.cover(topic, n, assigned[topic], err)
	}
}

func (h *groupHandler) cover(topic string, partitions int, by assignment, err error) {
	switch known := h.coverage[topic]; {
	case err != nil: // during a rebalance, or a right is missing: the next look shows
		known.missing = time.Time{}
		h.coverage[topic] = known
	case by.partitions >= partitions:
		h.coverage[topic] = coverage{partitions: partitions}
	case known.missing.IsZero():
		known.missing = time.Now()
		h.coverage[topic] = known
	case !by.others && time.Since(known.missing) >= topicLook-time.Second && h.s.covering[topic] != partitions:
		h.s.covering[topic] = partitions // once: a strategy of others may leave partitions out on purpose
		h.reconnect(errUncovered)
	}
}

var errNotStable = errors.New("the group is rebalancing")

// assignment says how many partitions of a topic are assigned, and whether another member has to act:
// the first of those that have some does.
type assignment struct {
	partitions int
	others     bool
}

// describe returns what is assigned of each topic.
func (h *groupHandler) describe(member string) (map[string]assignment, error) {
	coordinator, err := h.clients.side.Coordinator(h.s.cfg.Group)
	if err != nil {
		return nil, err
	}
	response, err := coordinator.DescribeGroups(&sarama.DescribeGroupsRequest{Groups: []string{h.s.cfg.Group}})
	if err != nil {
		_ = coordinator.Close()
		return nil, err
	}
	all := map[string]assignment{}
	for _, g := range response.Groups {
		if g.Err != sarama.ErrNoError || g.State != "Stable" {
			return nil, errNotStable
		}
		for id, m := range g.Members {
			assigned, err := m.GetMemberAssignment()
			if err != nil || assigned == nil {
				continue // that member has no partition
			}
			for topic, partitions := range assigned.Topics {
				of := all[topic]
				of.partitions += len(partitions)
				of.others = of.others || len(partitions) > 0 && id < member
				all[topic] = of
			}
		}
	}
	return all, nil
}
