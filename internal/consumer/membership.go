package consumer

import (
	"errors"
	"slices"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
)

// waitTold is how long a member waits for its assignment before it says so.
const waitTold = 3 * time.Second

// tellJoining says now and then that a session does not begin. A JoinGroup gets its response when
// all members have come, or were given up.
func (s *Subscription) tellJoining() {
	report, due := s.joining.Lasts()
	if !due {
		return
	}
	fields := watermill.LogFields{"waiting_for": report.For.Round(time.Millisecond).String()}
	if member := s.member.Load(); member != nil {
		fields["member_id"] = member.id
	}
	s.cfg.Logger.Info("Waiting for the consumer group: the assignment comes once its other members have joined again, or were given up at their "+
		"session or rebalance timeout, its coordinator responds and, with Transactions, those of earlier owners have ended", fields)
}

// assigned logs what a session begins with.
func (h *groupHandler) assigned(session sarama.ConsumerGroupSession) {
	h.s.joining.Over()
	var claimed []place
	for _, at := range placesOf(session.Claims()) {
		if slices.Contains(h.subscribed, at.topic) {
			claimed = append(claimed, at)
		}
	}
	h.s.member.Store(&member{session.MemberID(), session.GenerationID})
	h.s.cfg.Logger.Info("Joined the consumer group", watermill.LogFields{
		"member_id": session.MemberID(), "generation": session.GenerationID(),
		"kafka_partitions": listed(claimed, h.s.cfg.several()),
	})
}

// errForeign ends a membership that got partitions of a topic which it did not subscribe to.
var errForeign = errors.New("partitions of a topic were assigned that is not subscribed to")

// refuse ends the membership over a partition that is not ours to read. The broker hands a static member
// that comes back what its id had before, whatever it subscribes to now. Once its id has left the group, it is assigned what it asks for.
func (h *groupHandler) refuse(topic string, partition int32) {
	h.foreign.Do(func() {
		fix := "the static member id belonged to a member that subscribed to it: use an id for one application only; this member leaves the group and joins it again"
		if h.s.cfg.Sarama.Consumer.Group.InstanceId == "" {
			fix = "look at the balance strategies of the group's members; this member joins again"
		}
		h.s.cfg.Logger.Error("A partition of another topic was assigned: nothing of it is handed out or committed", errors.New(fix),
			watermill.LogFields{"topic": topic, "kafka_partition": partition, "subscribed_topic": h.s.cfg.Topics.Text})
		h.reconnect(errForeign)
	})
}

// leaveStatic takes the member's static id out of the group, which to close a static member does not.
func (h *groupHandler) leaveStatic() error {
	id, member := h.s.cfg.Sarama.Consumer.Group.InstanceId, h.s.member.Load()
	if id == "" || member == nil {
		return nil
	}
	coordinator, err := h.clients.fetch.Coordinator(h.s.cfg.Group)
	if err != nil {
		return err
	}
	// Version 3 is the first that takes a static id, and what Kafka 2.4 brought with it.
	response, err := coordinator.LeaveGroup(&sarama.LeaveGroupRequest{
		Version: 3, GroupId: h.s.cfg.Group,
		Members: []sarama.MemberIdentity{{MemberId: member.id, GroupInstanceId: &id}},
	})
	if err != nil {
		_ = coordinator.Close()
		return err
	}
	if response.Err != sarama.ErrNoError {
		return response.Err
	}
	return nil
}
