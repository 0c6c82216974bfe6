package consumer

import (
	"context"
	"errors"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/ledger"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// A topic that is deleted and created again has the same name and another id. Positions in the earlier one are
// meaningless in the new one: continuing from them would skip records, and so would "newest". So the id is compared,
// and a new topic is read from its beginning.

// errTopicRecreated ends a session whose positions are of an earlier topic.
var errTopicRecreated = errors.New("the topic was deleted and created again")

// liveSession has what ends when a new topic is seen.
type liveSession struct {
	session   sarama.ConsumerGroupSession
	committer *commit.Committer
	end       context.CancelCauseFunc
}

// begin finds out whether the session's positions belong to an earlier topic. If so, it stores the beginning of each
// of its partitions for the group and ends the session, since sarama has read the positions already.
func (h *groupHandler) begin(session sarama.ConsumerGroupSession) {
	h.watch.look(false)
	recreated := h.s.topics.recreated()
	h.restarting = len(recreated) > 0 || h.startNew(session)
	h.live.Store(&liveSession{session, h.committer, h.endSession})
	if !h.restarting {
		h.topicRecreated() // if one was seen between two sessions
		h.topicsChanged()
		return
	}
	defer h.endSession(errTopicRecreated)
	for topic, id := range recreated {
		for _, p := range session.Claims()[topic] {
			if !h.restart(session.Context(), place{topic, p}, true) {
				return
			}
		}
		h.s.topics.restarted(topic, id)
	}
}

// startNew stores the beginning of the partitions of new topics for which nothing is stored, if their records would
// otherwise be skipped. It reports whether it did, and the session has to end. What fails is tried again by the claim.
func (h *groupHandler) startNew(session sarama.ConsumerGroupSession) (again bool) {
	if h.s.cfg.Sarama.Consumer.Offsets.Initial != sarama.OffsetNewest {
		return false
	}
	for _, at := range placesOf(session.Claims()) {
		if !h.s.topics.of(at.topic).unread() {
			continue
		}
		ctx, cancel := context.WithTimeout(session.Context(), storedPatience)
		if stored, err := h.stored(ctx, session, at); err == nil && stored.Offset < 0 {
			h.restart(ctx, at, true)
			again = true
		}
		cancel()
	}
	return again
}

// stale reports whether what the group has stored belongs to an earlier topic: it was stored by a member that had not
// noticed the new one when it ended. An offset that came with the log from another cluster is not stale.
func (h *groupHandler) stale(at place, position commit.Position) bool {
	topic := h.s.topics.of(at.topic)
	l, err := ledger.Decode(ledger.Place{Topic: at.topic, Partition: at.partition, Offset: position.Offset}, position.Metadata)
	if err != nil || !topic.other(l.TopicID, l.Cluster) {
		return false
	}
	h.watch.look(false) // perhaps we have not noticed
	topic = h.s.topics.of(at.topic)
	return !topic.recreated() && topic.other(l.TopicID, l.Cluster)
}

// again stores the beginning of a partition and ends the session, since sarama has read the earlier offset.
func (h *groupHandler) again(session sarama.ConsumerGroupSession, at place) {
	// Another partition may end the session while this one's is being stored: what was sent by then is confirmed, and reported.
	ctx, cancel := context.WithCancel(context.WithoutCancel(session.Context()))
	defer cancel()
	defer context.AfterFunc(session.Context(), func() { time.AfterFunc(topicPatience, cancel) })()
	h.restart(ctx, at, true)
	h.endSession(errTopicRecreated)
}

// leave stores the beginning of a partition that was read at positions of an earlier topic and is released: a member
// that knows the new topic would continue from what was stored last. Without tell, the member that gets the partition
// reports it.
func (h *groupHandler) leave(at place, tell bool) {
	ctx, cancel := context.WithTimeout(context.Background(), topicPatience)
	defer cancel()
	defer h.s.side.AbortLate(ctx.Done())()
	h.restart(ctx, at, tell)
}

// restart stores the beginning of a partition as its position, and reports that, unless it was the partition's first.
func (h *groupHandler) restart(ctx context.Context, at place, tell bool) (ok bool) {
	oldest, err := h.store(ctx, at)
	if err != nil {
		h.s.logger(at.topic).Debug("Cannot continue from the beginning of a new topic yet", watermill.LogFields{"kafka_partition": at.partition, "err": err.Error()})
		return false
	}
	if tell && !h.s.topics.of(at.topic).unread() {
		h.s.reset(at.topic, at.partition, -1, oldest, errTopicRecreated)
	}
	return true
}

// store stores the beginning of a partition for the group, and returns it.
func (h *groupHandler) store(ctx context.Context, at place) (oldest int64, err error) {
	oldest, err = h.clients.side.GetOffset(at.topic, at.partition, sarama.OffsetOldest)
	if err != nil {
		return 0, err
	}
	start := h.committer.NewSource(commit.SourceConfig{
		Topic: at.topic, Partition: at.partition,
		Mark:    func() partition.Mark { return partition.Mark{Offset: oldest} },
		Running: func() int { return 0 },
		Snapshot: func(int) (*partition.Snapshot, string) {
			return &partition.Snapshot{Mark: partition.Mark{Offset: oldest}}, ""
		},
		Reverted:  func(*partition.Snapshot) bool { return false },
		Confirmed: func(*partition.Snapshot, bool) {},
		Fenced:    func(error) {},
	})
	defer start.Close(errTopicRecreated)
	start.Open()
	if err := start.WaitStart(ctx); err != nil {
		return 0, err
	}
	return oldest, nil
}

// topicRecreated is called when a new topic is seen: nothing of the earlier one may be stored for it.
func (h *groupHandler) topicRecreated() {
	live, recreated := h.live.Load(), h.s.topics.recreated()
	if live == nil || len(recreated) == 0 {
		return
	}
	for topic := range recreated {
		live.committer.Abandon(topic, errTopicRecreated)
	}
	live.end(errTopicRecreated)
}

// errTopicsChanged ends a session that was joined for other topics than there are.
var errTopicsChanged = errors.New("topics were created or deleted")

// topicsChanged is called when topics may have come or gone since the session was joined.
func (h *groupHandler) topicsChanged() {
	if live := h.live.Load(); live != nil && h.s.topics.changed() {
		live.end(errTopicsChanged)
	}
	wait.Wake(h.came)
}
