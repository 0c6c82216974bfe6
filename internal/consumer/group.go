package consumer

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/commit"
	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// consumeGroup keeps a membership in the group until ctx ends or the membership fails.
func (s *Subscription) consumeGroup(ctx context.Context, c *clients) error {
	ctx, reconnect := context.WithCancelCause(ctx)
	defer reconnect(nil)
	c.fetch.endRetries(ctx)
	newGroup := sarama.NewConsumerGroupFromClient
	if s.cfg.Memory != nil {
		newGroup = s.cfg.Memory.ConsumerGroup
	}
	s.member.Store(nil)
	group, err := newGroup(s.cfg.Group, c.fetch)
	if err != nil {
		return err
	}
	var errs sync.WaitGroup
	errs.Go(func() { s.hear(group.Errors()) })
	defer errs.Wait()

	h := &groupHandler{
		s: s, clients: c, asking: make(chan struct{}, 1), group: group, reconnect: reconnect,
		interrupter: interrupter{s: s, ctx: ctx},
		came:        make(chan struct{}, 1), coverage: map[string]coverage{},
	}
	h.watch = s.watchTopics(ctx, c.side, h.topicRecreated, h.topicsChanged, h.covers)
	defer h.watch.stop()
	var handler sarama.ConsumerGroupHandler = h
	if s.cfg.Tracer != nil {
		handler = s.cfg.Tracer.WrapConsumerGroupHandler(handler)
	}
	err = h.sessions(ctx, handler)
	h.interrupter.stop()
	return h.quit(context.Cause(ctx), err)
}

// hear records the errors of a membership until it is closed.
func (s *Subscription) hear(errs <-chan error) {
	for err := range errs {
		if errors.Is(err, sarama.ErrFencedInstancedId) || errors.Is(err, errTopicRecreated) {
			continue // reported by whoever ended the session because of it
		}
		k, where := connecting, everywhere
		var at *sarama.ConsumerError
		if errors.As(err, &at) {
			k, where, err = fetching, place{at.Topic, at.Partition}, at.Err
			s.suspect(err)
		}
		s.health.failed(k, where, failure{err: err})
	}
}

// sessions joins one session of the group after the other, until ctx ends or one fails.
func (h *groupHandler) sessions(ctx context.Context, handler sarama.ConsumerGroupHandler) (err error) {
	short := 0 // consecutive sessions that ended at once
	for ctx.Err() == nil && err == nil && h.await(ctx) {
		began := time.Now()
		var session context.Context
		session, h.endSession = context.WithCancelCause(ctx)
		h.interrupter.between() // again, if a Tracer kept the end of the last session from us
		h.s.recover(session)
		h.s.joining.Failed()
		err = h.group.Consume(session, h.subscribed, handler)
		if session.Err() != nil && ctx.Err() == nil {
			err = nil // an effect of how we ended the session, such as an interrupted JoinGroup; if it lasts, the next session shows it
		}
		h.endSession(nil)
		h.s.joining.Over()
		h.s.health.session(false)
		if short++; time.Since(began) > time.Second {
			short = 0
		}
		if short > 3 {
			wait.For(wait.Backoff(short-2, 100*time.Millisecond, 5*time.Second), ctx.Done())
		}
	}
	return err
}

// await sets the topics of the next session. It waits until there is one, or returns false when ctx ends.
func (h *groupHandler) await(ctx context.Context) bool {
	if h.s.cfg.several() {
		h.watch.look(true)
	}
	for {
		if h.subscribed = h.s.topics.join(); len(h.subscribed) > 0 {
			return true
		}
		select {
		case <-h.came:
		case <-ctx.Done():
			return false
		}
	}
}

// quit leaves the group and returns why the membership ended.
func (h *groupHandler) quit(cause, err error) error {
	if cause != nil && !errors.Is(cause, context.Canceled) {
		err = errors.Join(err, cause)
	}
	// Close leaves the group; only after Consume, or it swallows every error.
	if closeErr := h.group.Close(); closeErr != nil {
		err = errors.Join(err, closeErr)
	}
	if errors.Is(cause, errForeign) || errors.Is(cause, errUncovered) {
		err = errors.Join(err, h.leaveStatic())
	}
	return err
}

// errUnstable ends a session of a subscription with transactions that does not know what is stored.
var errUnstable = errors.New("the group's stored position is not known")

// storedPatience is how long a claim without a position asks what the group has stored. Others
// on the same broker wait meanwhile.
const storedPatience = 10 * time.Second

// reset reports that the records from stored on are not delivered; -1 if that is not known.
func (s *Subscription) reset(topic string, p int32, stored, start int64, err error) {
	text := "The next offset is outside the partition's log: position reset"
	switch {
	case errors.Is(err, errTopicRecreated):
		text = "The topic was deleted and created again: position reset to its beginning"
	case stored < 0:
		text = "The group's stored offset is not known, and may be outside the partition's log: position reset"
	}
	s.logger(topic).Error(text, s.health.explain(err), watermill.LogFields{"kafka_partition": p, "stored_offset": stored, "new_offset": start})
	s.cfg.Events.Reset(topic, p, stored, start)
}

// groupHandler is one membership of the group.
type groupHandler struct {
	s         *Subscription
	clients   *clients
	group     sarama.ConsumerGroup
	reconnect context.CancelCauseFunc // ends the membership
	committer *commit.Committer

	endSession context.CancelCauseFunc // the next session joins the group again

	foreign     sync.Once
	interrupter interrupter

	watch      *topicWatch
	subscribed []string      // the topics of the session
	came       chan struct{} // a token: topics have come, or gone
	coverage   map[string]coverage
	live       atomic.Pointer[liveSession] // nil between sessions
	restarting bool                        // the session's positions are of an earlier topic

	asking     chan struct{} // held by the goroutine that asks for positions
	generation int32         // of the positions; both are guarded by asking
	positions  map[string]map[int32]commit.Position
}

// Setup begins a session. With eager rebalances a session is one assignment, with cooperative
// ones the whole membership.
func (h *groupHandler) Setup(session sarama.ConsumerGroupSession) error {
	h.s.health.session(true)
	h.interrupter.session(session.Context())
	h.clients.fetch.turns.session(session.Context().Done())
	_ = h.clients.learn(h.s.cfg, h.subscribed[0]) // the topic may not have existed before
	h.assigned(session)
	h.committer = h.newCommitter(session)
	h.positions = nil // a member that joins again may get the same generation
	h.begin(session)
	if !h.restarting {
		h.clients.fetch.watch.Store(h.watch)
	}
	return nil
}

// Cleanup ends a session. It is called after the last claim has ended.
func (h *groupHandler) Cleanup(session sarama.ConsumerGroupSession) error {
	h.clients.fetch.watch.Store(nil)
	h.live.Store(nil)
	if cause := context.Cause(session.Context()); errors.Is(cause, sarama.ErrFencedInstancedId) {
		h.reconnect(cause)
	}
	h.committer.Close()
	h.interrupter.between()
	return nil
}

// ConsumeClaim serves one assigned partition until it is revoked or the subscriber closes.
// Returning for any other reason would end the session for all partitions.
func (h *groupHandler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	s := h.s
	topic, partition := claim.Topic(), claim.Partition()
	at := place{topic, partition}
	partitions := map[string][]int32{topic: {partition}}
	gate := newGate(func() { h.group.Pause(partitions) }, func() { h.group.Resume(partitions) })
	h.clients.fetch.turns.started(at)
	if !slices.Contains(h.subscribed, topic) {
		h.refuse(topic, partition)
		<-discard(claim.Messages()) // they are not ours
		return nil
	}
	start, use := h.startPosition(session, claim)
	if start.stale {
		h.again(session, at)
	}
	if !use {
		<-discard(claim.Messages()) // they come again
		return nil
	}
	c := s.newClaim(claimStart{
		place: at, from: start, committer: h.committer, side: h.clients.side,
		gate: gate, logEnd: claim.HighWaterMarkOffset, reconnect: h.reconnect,
	})
	var closing <-chan struct{}
	if s.cooperative {
		closing = s.closing.Done()
	}
	c.run(claim.Messages(), session.Context().Done(), closing)
	known := s.topics.of(topic).recreated()
	h.watch.look(false)
	c.drain(claim.Messages(), s.revokeBudget())
	if s.topics.of(topic).recreated() {
		h.leave(at, !known)
	}
	return nil
}

// startPosition returns where a claim begins. ok is false if the session ended before that was known:
// a claim that does not know what is stored must not store anything. It is also false if the session has to end,
// since sarama's position is of an earlier topic, or of none.
func (h *groupHandler) startPosition(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) (at position, ok bool) {
	s, topic, partition := h.s, claim.Topic(), claim.Partition()
	if h.restarting {
		return position{}, false
	}
	if claim.InitialOffset() == sarama.OffsetNewest {
		// Either the member that had the partition had not noticed a new topic, or we had not until now.
		if h.watch.look(false); s.topics.of(topic).replaced() {
			return position{stale: true}, false
		}
	}
	ctx, cancel := context.WithTimeout(session.Context(), storedPatience)
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	defer s.side.AbortLate(ctx.Done())()
	stored, err := h.stored(ctx, session, place{topic, partition})
	switch {
	case err == nil && (h.stale(place{topic, partition}, stored) || stored.Offset < 0 && claim.InitialOffset() >= 0):
		// In the second case the topic was deleted since sarama asked, and with it what was stored.
		return position{stale: true}, false
	case err != nil && (s.closingNow() || session.Context().Err() != nil):
		return position{}, false
	}
	if offset := claim.InitialOffset(); s.transactions != nil && (err != nil || offset >= 0 && offset != stored.Offset) {
		// Without its marks, records would be delivered again whose output is stored.
		s.logger(topic).Error("The group's stored position cannot be read, and transactions need it: joining again",
			err, watermill.LogFields{"kafka_partition": partition, "kafka_partition_offset": offset})
		h.endSession(errors.Join(errUnstable, err))
		return position{}, false
	}
	if offset := claim.InitialOffset(); offset >= 0 {
		if err != nil {
			s.logger(topic).Error("The group's stored position cannot be read: records that were delivered before start with attempt 1 and without their delays",
				err, watermill.LogFields{"kafka_partition": partition, "kafka_partition_offset": offset})
		}
		if stored.Offset != offset {
			stored.Metadata = "" // it belongs to another commit than the one that sarama has read
		}
		return position{offset: offset, stored: true, metadata: stored.Metadata}, true
	}
	// Nothing was stored, or what was stored is outside the log and sarama has reset the
	// position. In both cases the start must be committed.
	offset, known := h.clients.fetch.position(topic, partition, claim.InitialOffset())
	if !known {
		// Not reached: ConsumePartition asks for both ends before it returns.
		offset = 0
	}
	switch {
	case err != nil:
		s.reset(topic, partition, -1, offset, err)
	case stored.Offset >= 0 && stored.Offset != offset:
		s.reset(topic, partition, stored.Offset, offset, sarama.ErrOffsetOutOfRange)
	}
	return position{offset: offset}, true
}

// stored returns what the group has stored for a partition. Partitions that are assigned together
// are requested together.
func (h *groupHandler) stored(ctx context.Context, session sarama.ConsumerGroupSession, at place) (commit.Position, error) {
	select {
	case h.asking <- struct{}{}:
		defer func() { <-h.asking }()
	case <-ctx.Done():
		return commit.Position{}, context.Cause(ctx)
	}
	generation := session.GenerationID()
	if position, ok := h.positions[at.topic][at.partition]; ok && h.generation == generation {
		return position, nil
	}
	known, err := commit.Positions(ctx, h.clients.side, h.s.cfg.Group, at.topic, at.partition, session.Claims(), h.s.transactions != nil)
	if err == nil {
		h.generation, h.positions = generation, known
	}
	return known[at.topic][at.partition], err
}
