package consumer

import (
	"context"
	"errors"
	"sync"
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

// identity says which topic of a name a subscription reads, over all of its sessions.
type identity struct {
	mu     sync.Mutex
	read   sarama.Uuid              // the topic that positions belong to; zero before the first response
	now    sarama.Uuid              // the topic that exists
	past   map[sarama.Uuid]struct{} // earlier topics: a broker that lags may still return them
	absent time.Time                // since when it does not exist; zero if it does, or nobody has looked
	left   bool                     // it did not exist when the group was last joined
	fresh  bool                     // one of several topics, and created while we were subscribed: nothing in it is old

	cluster uint32 // see ledger.Ledger
}

// saw records a response. It reports whether that is a topic that was not seen before.
func (i *identity) saw(id sarama.Uuid, cluster uint32) (recreated bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cluster = cluster
	if _, ok := i.past[id]; ok || id == i.now || id == (sarama.Uuid{}) {
		return false
	}
	if i.now == (sarama.Uuid{}) {
		i.read, i.now = id, id
		return false
	}
	if i.past == nil {
		i.past = map[sarama.Uuid]struct{}{}
	}
	i.past[i.now] = struct{}{}
	i.now = id
	return true
}

// recreated reports whether positions belong to an earlier topic than the one that exists.
func (i *identity) recreated() (now sarama.Uuid, recreated bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.now, i.now != i.read
}

// reading returns the id of the topic that positions belong to, zero if not known, and its cluster.
func (i *identity) reading() (sarama.Uuid, uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.read, i.cluster
}

// other reports whether a topic of this name and cluster is not the one that exists.
func (i *identity) other(id sarama.Uuid, cluster uint32) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	unknown := sarama.Uuid{}
	return id != i.now && id != unknown && i.now != unknown && cluster == i.cluster && cluster != 0
}

// replaced reports whether there was an earlier topic of the name, or none. If so, and the group has nothing stored for
// a partition, no member has started to read it.
func (i *identity) replaced() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.past) > 0 || i.fresh
}

// unread reports whether the topic was created while we were subscribed, and never before.
func (i *identity) unread() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fresh && len(i.past) == 0
}

// missing records that the topic does not exist, and returns since when.
func (i *identity) missing() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.absent.IsZero() {
		i.absent = time.Now()
	}
	return i.absent
}

// joining records that the group is about to be joined.
func (i *identity) joining() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.left = !i.absent.IsZero()
}

// exists records that the topic exists. It reports whether the group has to be joined again for it. It
// has not if the topic was there all the time: a broker that has just started may not know it.
func (i *identity) exists(id sarama.Uuid) (appeared bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	appeared = !i.absent.IsZero() && (i.left || id != i.now || id == (sarama.Uuid{}))
	i.absent = time.Time{}
	return appeared
}

// found records that the topic exists and is one of several that are read.
func (i *identity) found(first bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.absent, i.fresh = time.Time{}, i.fresh || !first
}

// restarted records that all positions belong to this topic from now on.
func (i *identity) restarted(id sarama.Uuid) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.read = id
}

// liveSession has what ends when a new topic is seen.
type liveSession struct {
	session    sarama.ConsumerGroupSession
	committer  *commit.Committer
	end        context.CancelCauseFunc
	restarting bool
}

// begin finds out whether the session's positions belong to an earlier topic. If so, it stores the beginning of each
// of its partitions for the group and ends the session, since sarama has read the positions already.
func (h *groupHandler) begin(session sarama.ConsumerGroupSession) {
	h.watch.look()
	recreated := h.s.topics.recreated()
	h.restarting = len(recreated) > 0 || h.startNew(session)
	h.live.Store(&liveSession{session, h.committer, h.endSession, h.restarting})
	if !h.restarting {
		if len(h.s.topics.recreated()) > 0 {
			h.topicRecreated() // it was seen between two sessions
		}
		h.topicsChanged()
		return
	}
	defer h.endSession(errTopicRecreated)
	for _, topic := range recreated {
		id, _ := h.s.topics.of(topic).recreated()
		for _, p := range session.Claims()[topic] {
			if err := h.restart(session.Context(), place{topic, p}); err != nil {
				h.s.logger(topic).Debug("Cannot continue from the beginning of a new topic yet", watermill.LogFields{"kafka_partition": p, "err": err.Error()})
				return
			}
		}
		h.s.topics.of(topic).restarted(id)
	}
}

// startNew stores the beginning of the partitions of new topics for which nothing is stored, if their records would
// otherwise be skipped. It reports whether it did, and the session has to end.
func (h *groupHandler) startNew(session sarama.ConsumerGroupSession) (again bool) {
	if h.s.cfg.Sarama.Consumer.Offsets.Initial != sarama.OffsetNewest {
		return false
	}
	for _, at := range placesOf(session.Claims()) {
		if !h.s.topics.of(at.topic).unread() {
			continue
		}
		ctx, cancel := context.WithTimeout(session.Context(), storedPatience)
		stored, err := h.positions.of(ctx, h, session, at)
		if err == nil && stored.Offset < 0 {
			_, err = h.store(ctx, at)
			again = true
		}
		cancel()
		if err != nil { // the claim tries it again
			h.s.logger(at.topic).Debug("Cannot begin a new topic at its beginning yet", watermill.LogFields{"kafka_partition": at.partition, "err": err.Error()})
		}
	}
	return again
}

// replaced is identity.replaced for a partition that would start at its newest offset: the topic may have been created
// since the session began.
func (h *groupHandler) replaced(topic string) bool {
	h.watch.look()
	return h.s.topics.of(topic).replaced()
}

// stale reports whether what the group has stored belongs to an earlier topic: it was stored by a member that had not
// noticed the new one when it ended. An offset that came with the log from another cluster is not stale.
func (h *groupHandler) stale(at place, position commit.Position) bool {
	topic := h.s.topics.of(at.topic)
	l, err := ledger.Decode(ledger.Place{Topic: at.topic, Partition: at.partition, Offset: position.Offset}, position.Metadata)
	if err != nil || !topic.other(l.TopicID, l.Cluster) {
		return false
	}
	h.watch.look() // perhaps we have not noticed
	_, recreated := topic.recreated()
	return !recreated && topic.other(l.TopicID, l.Cluster)
}

// lasting returns a context that ends a short time after another one: what was sent by then is confirmed, and reported.
func lasting(ctx context.Context) (longer context.Context, stop func()) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	keep := context.AfterFunc(ctx, func() { time.AfterFunc(topicPatience, cancel) })
	return longer, func() { keep(); cancel() }
}

// restart stores the beginning of a partition as its position, and reports that.
func (h *groupHandler) restart(ctx context.Context, at place) error {
	oldest, err := h.store(ctx, at)
	if err == nil && !h.s.topics.of(at.topic).unread() {
		h.s.reset(at.topic, at.partition, -1, oldest, errTopicRecreated)
	}
	return err
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

// leave is restart for a partition that was read at positions of an earlier topic and is released: a member that knows
// the new topic would continue from what was stored last. The member that gets the partition reports it.
func (h *groupHandler) leave(at place, tell bool) {
	ctx, cancel := context.WithTimeout(context.Background(), topicPatience)
	defer cancel()
	defer h.s.side.AbortLate(ctx.Done())()
	oldest, err := h.store(ctx, at)
	if err == nil && tell {
		h.s.reset(at.topic, at.partition, -1, oldest, errTopicRecreated)
	}
}

// topicRecreated is called when a new topic is seen: nothing of the earlier one may be stored for it.
func (h *groupHandler) topicRecreated() {
	if live := h.live.Load(); live != nil {
		for _, topic := range h.s.topics.recreated() {
			live.committer.Abandon(topic, errTopicRecreated)
		}
		live.end(errTopicRecreated)
	}
}

// errTopicsChanged ends a session that was joined for other topics than there are.
var errTopicsChanged = errors.New("topics were created or deleted")

// topicsChanged is called when topics may have come or gone since the session was joined.
func (h *groupHandler) topicsChanged() {
	if live := h.live.Load(); live != nil && h.s.topics.changed(int(h.version.Load())) {
		live.end(errTopicsChanged)
	}
	wait.Wake(h.came)
}
