package consumer

import (
	"errors"
	"time"

	"github.com/IBM/sarama"
)

// The leader of a group looks for added partitions and has them assigned. If a static member that
// was the leader comes back, it gets its old assignment, and sarama does not learn that it is the
// leader: then nobody looks. So static members check that all partitions of their topic are assigned.

var errUncovered = errors.New("the group has partitions of the topic assigned to nobody, as happens when they are added while its leader, a static member, is " +
	"away: this member leaves the group and joins it again, so that they are assigned")

// coverage has what a membership knows about this. Only the goroutine of the topic watch uses it.
type coverage struct {
	partitions int // how many are known to be assigned
	missing    time.Time
}

// covers is called with the number of partitions each time the topic is looked at.
func (h *groupHandler) covers(partitions int) {
	live := h.live.Load()
	if h.s.cfg.Sarama.Consumer.Group.InstanceId == "" || live == nil || live.restarting || partitions <= h.coverage.partitions {
		return
	}
	covered, ours, err := h.describe(live.session.MemberID(), partitions)
	switch {
	case err != nil: // during a rebalance, or a right is missing: the next look shows
		h.coverage.missing = time.Time{}
	case covered:
		h.coverage = coverage{partitions: partitions}
	case h.coverage.missing.IsZero():
		h.coverage.missing = time.Now()
	case ours && time.Since(h.coverage.missing) >= topicLook-time.Second && h.s.covering != partitions:
		h.s.covering = partitions // once: a strategy of others may leave partitions out on purpose
		h.reconnect(errUncovered)
	}
}

var errNotStable = errors.New("the group is rebalancing")

// describe returns whether all partitions of the topic are assigned, and whether this member has
// to act: the first of those that have some.
func (h *groupHandler) describe(member string, partitions int) (covered, ours bool, err error) {
	coordinator, err := h.clients.side.Coordinator(h.s.cfg.Group)
	if err != nil {
		return false, false, err
	}
	response, err := coordinator.DescribeGroups(&sarama.DescribeGroupsRequest{Groups: []string{h.s.cfg.Group}})
	if err != nil {
		_ = coordinator.Close()
		return false, false, err
	}
	assigned := map[int32]bool{}
	ours = true
	for _, g := range response.Groups {
		if g.Err != sarama.ErrNoError || g.State != "Stable" {
			return false, false, errNotStable
		}
		for id, m := range g.Members {
			assignment, err := m.GetMemberAssignment()
			if err != nil || assignment == nil {
				continue // that member has no partition
			}
			mine := assignment.Topics[h.s.cfg.Topic]
			for _, p := range mine {
				assigned[p] = true
			}
			ours = ours && (len(mine) == 0 || id >= member)
		}
	}
	return len(assigned) >= partitions, ours, nil
}
