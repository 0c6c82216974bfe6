package consumer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// solo reads every partition of the topics without a group: from the configured start; after a
// reconnect from where it was; and a partition or topic that was added meanwhile from its beginning.
type solo struct {
	s        *Subscription
	clients  *clients
	consumer sarama.Consumer
	traced   sarama.Consumer       // the same through the Tracer
	known    map[place]struct{}    // the partitions
	topics   map[string]*soloTopic // those that are read

	mu      sync.Mutex
	failing map[place]struct{} // partitions that cannot be opened
}

// soloTopic is a topic that is read.
type soloTopic struct {
	ctx  context.Context
	stop context.CancelFunc
	all  sync.WaitGroup // its partitions
}

// reader is an open partition.
type reader struct {
	place
	from int64
	pc   sarama.PartitionConsumer // the Tracer's, if there is one
	gate *gate
}

// openAll finds the partitions of the topics. The first time, in Subscribe, it also fixes where each is
// read from, and it is an error if that of one is not known: what is written from then on is delivered.
func (s *Subscription) openAll(ctx context.Context, c *clients, first bool) (*solo, error) {
	newConsumer := sarama.NewConsumerFromClient
	if s.cfg.Memory != nil {
		newConsumer = s.cfg.Memory.Consumer
	}
	consumer, err := newConsumer(c.fetch)
	if err != nil {
		return nil, err
	}
	x := &solo{
		s: s, clients: c, consumer: consumer, traced: consumer,
		known: map[place]struct{}{}, topics: map[string]*soloTopic{}, failing: map[place]struct{}{},
	}
	if s.cfg.Tracer != nil {
		x.traced = s.cfg.Tracer.WrapConsumer(consumer)
	}
	for _, topic := range s.topics.list() {
		partitions, err := x.traced.Partitions(topic)
		if err != nil && (first || !s.cfg.several()) {
			return nil, errors.Join(fmt.Errorf("cannot get the partitions of topic %s: %w", topic, err), consumer.Close())
		}
		for _, p := range partitions {
			at := place{topic, p}
			if x.known[at] = struct{}{}; !first {
				continue
			}
			start, err := x.initial(ctx, at)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("cannot read partition %d of topic %s: %w", p, topic, err), consumer.Close())
			}
			x.reached(at, start)
		}
	}
	return x, nil
}

// initial returns where to begin to read a partition. If it is new, its leader may not know it yet.
func (x *solo) initial(ctx context.Context, at place) (start int64, err error) {
	retry := &x.s.cfg.Sarama.Metadata.Retry
	for n := 0; ; n++ {
		start, err = x.clients.side.GetOffset(at.topic, at.partition, x.s.cfg.Sarama.Consumer.Offsets.Initial)
		if !errors.Is(err, sarama.ErrNotLeaderForPartition) || n >= retry.Max || !wait.For(retry.Backoff, ctx.Done()) {
			return start, err
		}
	}
}

// open starts to read a partition. One that did not exist when positions were fixed is new.
func (x *solo) open(at place) (*reader, error) {
	s, topic, p := x.s, at.topic, at.partition
	s.mu.Lock()
	from, resumed := s.positions[at]
	s.mu.Unlock()
	if !resumed {
		from = sarama.OffsetOldest
	}
	recreated := resumed && from == sarama.OffsetOldest // see run
	pc, err := x.traced.ConsumePartition(topic, p, from)
	reached, reset := from, resumed && errors.Is(err, sarama.ErrOffsetOutOfRange)
	if reset {
		from = s.cfg.Sarama.Consumer.Offsets.Initial
		pc, err = x.traced.ConsumePartition(topic, p, from)
	}
	if err != nil {
		x.clients.fetch.turns.started(at)
		return nil, err
	}
	r := &reader{place: at, pc: pc, gate: newGate(pc.Pause, pc.Resume)}
	x.clients.fetch.turns.started(at)
	if from < 0 {
		from, _ = x.clients.fetch.position(topic, p, from)
	}
	switch {
	case recreated:
		s.reset(topic, p, -1, from, errTopicRecreated)
	case reset:
		s.reset(topic, p, reached, from, sarama.ErrOffsetOutOfRange)
	}
	x.reached(at, from)
	if r.from = from; s.cfg.Tracer != nil {
		r.pc = s.cfg.Tracer.WrapPartitionConsumer(pc)
	}
	return r, nil
}

// reached remembers where a partition continues.
func (x *solo) reached(at place, offset int64) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.s.positions[at] = offset
}

// run reads until ctx ends or a watchdog requests new connections.
func (x *solo) run(ctx context.Context) error {
	s := x.s
	ctx, reconnect := context.WithCancelCause(ctx)
	defer reconnect(nil)
	more := make(chan map[string]int, 1)
	watch := s.watchTopics(ctx, x.clients.side, func() { reconnect(errTopicRecreated) }, func() {}, func(partitions map[string]int) {
		select {
		case <-more: // an earlier look
		default:
		}
		more <- partitions
	})
	defer watch.stop()
	watch.look(false)
	for topic, id := range s.topics.recreated() {
		for at := range x.known {
			if at.topic == topic {
				x.reached(at, sarama.OffsetOldest)
			}
		}
		s.topics.restarted(topic, id)
	}
	x.clients.fetch.watch.Store(watch)
	x.clients.fetch.turns.session(ctx.Done())
	s.health.session(len(x.known) > 0)
	interrupter := interrupter{s: s}
	interrupter.session(ctx)
	defer interrupter.stop()
	for at := range x.known {
		x.start(ctx, reconnect, at)
	}
	for ctx.Err() == nil {
		select {
		case partitions := <-more:
			x.follow(ctx, reconnect, partitions)
		case <-ctx.Done():
		}
	}
	for _, t := range x.topics {
		t.all.Wait()
	}
	err := x.consumer.Close()
	if cause := context.Cause(ctx); !s.closingNow() && (errors.Is(cause, errFetchStalled) || errors.Is(cause, errTopicRecreated)) {
		return errors.Join(cause, err)
	}
	return err
}

// start begins to read a partition.
func (x *solo) start(ctx context.Context, reconnect context.CancelCauseFunc, at place) {
	t := x.topics[at.topic]
	if t == nil {
		t = &soloTopic{}
		t.ctx, t.stop = context.WithCancel(ctx)
		x.topics[at.topic] = t
	}
	t.all.Go(func() { x.read(t.ctx, reconnect, at) })
}

// follow begins to read partitions that were added, and ends the topics that are gone.
func (x *solo) follow(ctx context.Context, reconnect context.CancelCauseFunc, partitions map[string]int) {
	s, list := x.s, x.s.topics.list()
	for topic, t := range x.topics {
		if slices.Contains(list, topic) {
			continue
		}
		t.stop()
		t.all.Wait() // for handlers, no longer than DrainTimeout
		delete(x.topics, topic)
		for at := range x.known {
			if at.topic == topic {
				delete(x.known, at)
				x.opened(at, nil)
			}
		}
		s.mu.Lock()
		maps.DeleteFunc(s.positions, func(at place, _ int64) bool { return at.topic == topic })
		s.mu.Unlock()
	}
	s.health.session(len(list) > 0)
	for topic, n := range partitions {
		for p := range int32(n) {
			at := place{topic, p}
			if _, known := x.known[at]; known || !slices.Contains(list, topic) {
				continue
			}
			x.known[at] = struct{}{}
			s.logger(topic).Info("A partition was added to the topic and is read from its beginning", watermill.LogFields{"kafka_partition": p})
			x.start(ctx, reconnect, at)
		}
	}
}

// read reads a partition, and opens it again until ctx ends.
func (x *solo) read(ctx context.Context, reconnect context.CancelCauseFunc, at place) {
	s := x.s
	for sleep := s.cfg.ReconnectSleep; ; {
		r, err := x.open(at)
		if ctx.Err() == nil {
			x.opened(at, err)
		}
		if err == nil {
			began := time.Now()
			if x.consume(ctx, reconnect, r); time.Since(began) > time.Minute {
				sleep = s.cfg.ReconnectSleep
			}
		}
		if !wait.For(wait.Jitter(sleep), ctx.Done()) {
			return
		}
		sleep = min(2*sleep, max(s.cfg.ReconnectSleep, 30*time.Second))
	}
}

// opened records whether a partition could be opened. Without a claim, health would not know
// that it is ours.
func (x *solo) opened(at place, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil {
		x.failing[at] = struct{}{}
		fields := watermill.LogFields{"kafka_partition": at.partition}
		if x.s.cfg.several() {
			fields["topic"] = at.topic
		}
		x.s.health.failed(opening, everywhere, failure{err: err, fields: fields})
		return
	}
	if delete(x.failing, at); len(x.failing) == 0 {
		x.s.health.works(opening, everywhere)
	}
}

// consume hands out a partition until its reader or ctx ends, and drains it.
func (x *solo) consume(ctx context.Context, reconnect context.CancelCauseFunc, r *reader) {
	s := x.s
	var errs sync.WaitGroup
	errs.Go(func() {
		for err := range r.pc.Errors() {
			s.health.failed(fetching, r.place, failure{err: err.Err})
			s.suspect(err.Err)
		}
	})
	claim := s.newClaim(claimStart{
		place: r.place, from: position{offset: r.from, stored: true}, side: x.clients.side,
		gate: r.gate, logEnd: r.pc.HighWaterMarkOffset, reconnect: reconnect,
	})
	claim.run(r.pc.Messages(), ctx.Done(), nil)
	r.pc.AsyncClose()
	claim.drain(r.pc.Messages(), s.cfg.DrainTimeout)
	x.reached(r.place, claim.part.Mark().Offset)
	errs.Wait()
}
