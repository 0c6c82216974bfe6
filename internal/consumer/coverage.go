package consumer

import (
	"errors"
	"time"

	"github.com/IBM/sarama"
)

// The leader of a group looks whether partitions were added, and has them assigned. A static member that was it
// and comes back gets its old assignment, and sarama no word that it is the leader: then nobody looks. So
// static members see to it that all partitions of their topic are assigned to somebody.

var errUncovered = errors.New("the group has partitions of the topic assigned to nobody, as happens when they are added while its leader, a static member, is " +
	"away: this member leaves the group and joins it again, so that they are assigned")

// coverage is what a membership knows of it. It belongs to the topic watch's goroutine.
type coverage struct {
	partitions int // that many are known to be assigned
	missing    time.Time
}

// covers is called with the number of the topic's partitions each time that the topic is looked at.
func (h *groupHandler) covers(partitions int) {
	live := h.live.Load()
	if h.s.cfg.Sarama.Consumer.Group.InstanceId == "" || live == nil || live.restarting || partitions <= h.coverage.partitions {
		return
	}
	covered, ours, err := h.describe(live.session.MemberID(), partitions)
	switch {
	case err != nil: // amid a rebalance, or for want of a right: the next look shows
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

// describe asks whether all partitions of the topic are assigned, and whether it is this member that has to care: the
// first of those that have some.
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
				continue // that one has nothing
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
