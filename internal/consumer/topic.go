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
)

// A topic that is deleted and created again has the same name and another id. Positions in the earlier one are
// meaningless in the new one: continuing from them would skip records, and so would "newest". So the id is compared,
// and a new topic is read from its beginning.

const (
	// topicLook is how often the id is read, in addition to when fetching was interrupted.
	topicLook = 5 * time.Second
	// topicPatience is how long a session, or a fetch that starts again, waits for the response.
	topicPatience = time.Second
)

// errTopicRecreated ends a session whose positions are of an earlier topic.
var errTopicRecreated = errors.New("the topic was deleted and created again")

// identity says which topic of a name a subscription reads, over all of its sessions.
type identity struct {
	mu   sync.Mutex
	read sarama.Uuid              // the topic that positions belong to; zero before the first response
	now  sarama.Uuid              // the topic that exists
	past map[sarama.Uuid]struct{} // earlier topics: a broker that lags may still return them

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

// replaced reports whether there was an earlier topic of the name. If so, and the group has nothing stored for a
// partition, no member has started to read it.
func (i *identity) replaced() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.past) > 0
}

// restarted records that all positions belong to this topic from now on.
func (i *identity) restarted(id sarama.Uuid) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.read = id
}

// topicWatch watches the id of the topic during a membership or, without a group, while it is read.
type topicWatch struct {
	s       *Subscription
	client  sarama.Client
	changed func()               // called when a new topic with the name is seen
	covers  func(partitions int) // called with each response; may be nil
	asks    chan chan struct{}
	ctx     context.Context
	stop    func()
}

// watchTopic starts a watch. Its stop waits for its end.
func (s *Subscription) watchTopic(ctx context.Context, client sarama.Client, changed func(), covers func(partitions int)) *topicWatch {
	w := &topicWatch{s: s, client: client, changed: changed, covers: covers, asks: make(chan chan struct{})}
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithCancel(ctx)
	var run sync.WaitGroup
	run.Go(w.run)
	w.stop = func() {
		cancel()
		interrupted := s.side.AbortLate(w.ctx.Done()) // the broker may be silent
		run.Wait()
		interrupted()
	}
	return w
}

func (w *topicWatch) run() {
	every := topicLook
	if w.s.cfg.Memory != nil { // an hour passes in no time, but for each look
		every = time.Minute
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		var waiting []chan struct{}
		select {
		case done := <-w.asks:
			waiting = append(waiting, done)
		case <-ticker.C:
		case <-w.ctx.Done():
			return
		}
		for more := true; more; { // one response serves them all
			select {
			case done := <-w.asks:
				waiting = append(waiting, done)
			default:
				more = false
			}
		}
		w.ask()
		for _, done := range waiting {
			close(done)
		}
	}
}

func (w *topicWatch) ask() {
	s := w.s
	topic, cluster, err := topicNow(w.client, s.cfg.Topic)
	switch {
	case errors.Is(err, sarama.ErrUnknownTopicOrPartition):
		s.health.failed(fetching, everywhere, failure{text: "The topic does not exist, waiting for it", err: err})
	case err != nil:
		s.cfg.Logger.Debug("Cannot ask for the topic's id", watermill.LogFields{"err": err.Error()})
	default:
		s.health.works(fetching, everywhere)
		if s.topic.saw(topic.Uuid, cluster) {
			w.changed()
		}
		if w.covers != nil {
			w.covers(len(topic.Partitions))
		}
	}
}

// look asks now, and waits a short time for the response.
func (w *topicWatch) look() {
	timer := time.NewTimer(topicPatience)
	defer timer.Stop()
	done := make(chan struct{})
	select {
	case w.asks <- done:
	case <-timer.C:
		return
	case <-w.ctx.Done():
		return
	}
	select {
	case <-done:
	case <-timer.C:
	case <-w.ctx.Done():
	}
}

// topicNow returns the id of the topic that has the name, and the checksum of its cluster's id. The topic's id is
// zero if the broker or Config.Version is older than 2.8.
func topicNow(client sarama.Client, topic string) (*sarama.TopicMetadata, uint32, error) {
	broker := client.LeastLoadedBroker()
	if broker == nil {
		return nil, 0, sarama.ErrOutOfBrokers
	}
	response, err := broker.GetMetadata(sarama.NewMetadataRequest(client.Config().Version, []string{topic}))
	if err != nil {
		_ = broker.Close()
		return nil, 0, err
	}
	cluster := uint32(0)
	if response.ClusterID != nil {
		cluster = ledger.ClusterOf(*response.ClusterID)
	}
	for _, t := range response.Topics {
		switch {
		case t.Name != topic:
		case t.Err != sarama.ErrNoError && t.Err != sarama.ErrLeaderNotAvailable:
			return nil, 0, t.Err
		default:
			return t, cluster, nil
		}
	}
	return nil, 0, sarama.ErrUnknownTopicOrPartition
}

// liveSession has what ends when a new topic is seen.
type liveSession struct {
	session    sarama.ConsumerGroupSession
	committer  *commit.Committer
	end        context.CancelCauseFunc
	restarting bool
}

// begin finds out whether the session's positions belong to an earlier topic. If so, it stores the beginning of each
// partition for the group and ends the session, since sarama has read the positions already.
func (h *groupHandler) begin(session sarama.ConsumerGroupSession) {
	h.watch.look()
	id, recreated := h.s.topic.recreated()
	h.restarting = recreated
	h.live.Store(&liveSession{session, h.committer, h.endSession, recreated})
	if !recreated {
		if _, recreated := h.s.topic.recreated(); recreated {
			h.topicChanged() // it was seen between two sessions
		}
		return
	}
	for _, p := range session.Claims()[h.s.cfg.Topic] {
		if err := h.restart(session.Context(), p); err != nil {
			h.s.cfg.Logger.Debug("Cannot continue from the beginning of a new topic yet", watermill.LogFields{"kafka_partition": p, "err": err.Error()})
			h.endSession(errTopicRecreated)
			return
		}
	}
	h.s.topic.restarted(id)
	h.endSession(errTopicRecreated)
}

// replaced is identity.replaced for a partition that would start at its newest offset: the topic may have been created
// since the session began.
func (h *groupHandler) replaced() bool {
	h.watch.look()
	return h.s.topic.replaced()
}

// stale reports whether what the group has stored belongs to an earlier topic: it was stored by a member that had not
// noticed the new one when it ended. An offset that came with the log from another cluster is not stale.
func (h *groupHandler) stale(p int32, position commit.Position) bool {
	l, err := ledger.Decode(ledger.Place{Topic: h.s.cfg.Topic, Partition: p, Offset: position.Offset}, position.Metadata)
	if err != nil || !h.s.topic.other(l.TopicID, l.Cluster) {
		return false
	}
	h.watch.look() // perhaps we have not noticed
	_, recreated := h.s.topic.recreated()
	return !recreated && h.s.topic.other(l.TopicID, l.Cluster)
}

// restart stores the beginning of a partition as its position, and reports that.
func (h *groupHandler) restart(ctx context.Context, p int32) error {
	oldest, err := h.store(ctx, p)
	if err == nil {
		h.s.reset(h.s.cfg.Topic, p, -1, oldest, errTopicRecreated)
	}
	return err
}

// store stores the beginning of a partition for the group, and returns it.
func (h *groupHandler) store(ctx context.Context, p int32) (oldest int64, err error) {
	topic := h.s.cfg.Topic
	oldest, err = h.clients.fetch.GetOffset(topic, p, sarama.OffsetOldest)
	if err != nil {
		return 0, err
	}
	start := h.committer.NewSource(commit.SourceConfig{
		Topic: topic, Partition: p,
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
func (h *groupHandler) leave(p int32, tell bool) {
	ctx, cancel := context.WithTimeout(context.Background(), topicPatience)
	defer cancel()
	defer h.s.side.AbortLate(ctx.Done())()
	oldest, err := h.store(ctx, p)
	if err == nil && tell {
		h.s.reset(h.s.cfg.Topic, p, -1, oldest, errTopicRecreated)
	}
}

// topicChanged is called when a new topic is seen: nothing of the earlier one may be stored for it.
func (h *groupHandler) topicChanged() {
	if live := h.live.Load(); live != nil {
		live.committer.Abandon(errTopicRecreated)
		live.end(errTopicRecreated)
	}
}

// refreshed keeps an interrupted fetch from continuing in a new topic.
func (h *groupHandler) refreshed() error {
	live := h.live.Load()
	if live == nil || live.restarting {
		return nil
	}
	h.watch.look()
	if _, recreated := h.s.topic.recreated(); recreated {
		return errTopicRecreated
	}
	return nil
}
