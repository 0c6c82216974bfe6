package consumer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"

	"github.com/ackpolicy/watermill-ackpolicy/internal/wait"
)

// solo reads every partition of the topic without a group: from the configured start; after a
// reconnect from where it was; and a partition that was added meanwhile from its beginning.
type solo struct {
	s        *Subscription
	clients  *clients
	consumer sarama.Consumer
	traced   sarama.Consumer   // the same through the Tracer
	readers  map[int32]*reader // nil for a partition that has to be opened
	watch    atomic.Pointer[topicWatch]

	mu      sync.Mutex
	failing map[int32]struct{} // partitions that cannot be opened
}

// reader is a partition whose position is fixed: what is written from now on is delivered.
type reader struct {
	partition int32
	from      int64
	pc        sarama.PartitionConsumer // the Tracer's, if there is one
	gate      *gate
}

// openAll finds the partitions of the topic. The first time, in Subscribe, it also fixes where
// each is read from, and one that cannot be read is an error. Later such a partition does not
// affect the others.
func (s *Subscription) openAll(c *clients) (_ *solo, err error) {
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
		readers: map[int32]*reader{}, failing: map[int32]struct{}{},
	}
	s.mu.Lock()
	first := len(s.positions) == 0
	s.mu.Unlock()
	defer func() {
		if err != nil {
			if first {
				s.cut() // there is no further attempt, and the readers would wait for responses
			}
			for _, r := range x.readers {
				r.close()
			}
			_ = consumer.Close()
		}
	}()
	if s.cfg.Tracer != nil {
		x.traced = s.cfg.Tracer.WrapConsumer(consumer)
	}
	c.fetch.refreshed = x.refreshed
	partitions, err := x.traced.Partitions(s.cfg.Topic)
	if err != nil {
		return nil, fmt.Errorf("cannot get the partitions of topic %s: %w", s.cfg.Topic, err)
	}
	for _, p := range partitions {
		var r *reader
		if first {
			if r, err = x.open(p, true); err != nil {
				return nil, fmt.Errorf("cannot read partition %d of topic %s: %w", p, s.cfg.Topic, err)
			}
		}
		x.readers[p] = r
	}
	return x, nil
}

// close ends a reader that nobody reads yet.
func (r *reader) close() {
	if r == nil {
		return
	}
	discarded := discard(r.pc.Messages())
	r.pc.AsyncClose()
	for range r.pc.Errors() { //nolint:revive // nobody is to know any more
	}
	<-discarded
}

// open starts to read a partition. The first time it may start at the end; a partition that
// did not exist then is new.
func (x *solo) open(p int32, first bool) (*reader, error) {
	s, topic := x.s, x.s.cfg.Topic
	initial := s.cfg.Sarama.Consumer.Offsets.Initial
	s.mu.Lock()
	from, resumed := s.positions[p]
	s.mu.Unlock()
	switch {
	case resumed:
	case first:
		from = initial
	default:
		from = sarama.OffsetOldest
	}
	recreated := resumed && from == sarama.OffsetOldest // see run
	pc, err := x.traced.ConsumePartition(topic, p, from)
	reached, reset := from, resumed && errors.Is(err, sarama.ErrOffsetOutOfRange)
	if reset {
		from = initial
		pc, err = x.traced.ConsumePartition(topic, p, from)
	}
	if err != nil {
		return nil, err
	}
	r := &reader{partition: p, pc: pc}
	// The gate is closed before sarama's first fetch of the partition: sarama collects partitions for 100 ms.
	r.gate = newGate(func(paused bool) {
		if paused {
			pc.Pause()
		} else {
			pc.Resume()
		}
	})
	if from < 0 {
		from, _ = x.clients.fetch.position(topic, p, from)
	}
	switch {
	case recreated:
		s.reset(topic, p, -1, from, errTopicRecreated)
	case reset:
		s.reset(topic, p, reached, from, sarama.ErrOffsetOutOfRange)
	}
	x.reached(p, from)
	if r.from = from; s.cfg.Tracer != nil {
		r.pc = s.cfg.Tracer.WrapPartitionConsumer(pc)
	}
	return r, nil
}

// reached remembers where a partition continues.
func (x *solo) reached(p int32, offset int64) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.s.positions[p] = offset
}

// run reads until ctx ends or a watchdog requests new connections.
func (x *solo) run(ctx context.Context) error {
	s := x.s
	ctx, reconnect := context.WithCancelCause(ctx)
	defer reconnect(nil)
	var partitions atomic.Int32
	more := make(chan struct{}, 1)
	watch := s.watchTopic(ctx, x.clients.side, func() { reconnect(errTopicRecreated) }, func(n int) {
		partitions.Store(int32(n))
		select {
		case more <- struct{}{}:
		default:
		}
	})
	defer watch.stop()
	watch.look()
	if now, recreated := s.topic.recreated(); recreated {
		for p := range x.readers {
			x.reached(p, sarama.OffsetOldest)
		}
		s.topic.restarted(now)
	}
	x.watch.Store(watch)
	s.health.session(true)
	interrupter := s.interrupt(ctx)
	interrupter.begin(ctx)
	var all sync.WaitGroup
	read := func(p int32, r *reader) {
		all.Go(func() { x.read(ctx, reconnect, p, r) })
	}
	for p, r := range x.readers {
		read(p, r)
	}
	for ctx.Err() == nil {
		for p := range partitions.Load() {
			if _, known := x.readers[p]; !known {
				x.readers[p] = nil
				s.cfg.Logger.Info("A partition was added to the topic and is read from its beginning", watermill.LogFields{"kafka_partition": p})
				read(p, nil)
			}
		}
		select {
		case <-more:
		case <-ctx.Done():
		}
	}
	all.Wait()
	err := x.consumer.Close()
	interrupter.end()
	interrupter.stop()
	if cause := context.Cause(ctx); !s.closingNow() && (errors.Is(cause, errFetchStalled) || errors.Is(cause, errTopicRecreated)) {
		return errors.Join(cause, err)
	}
	return err
}

// refreshed keeps an interrupted fetch from continuing in a new topic.
func (x *solo) refreshed() error {
	if watch := x.watch.Load(); watch != nil {
		watch.look()
	}
	if _, recreated := x.s.topic.recreated(); recreated {
		return errTopicRecreated
	}
	return nil
}

// read reads a partition, and opens it again until ctx ends.
func (x *solo) read(ctx context.Context, reconnect context.CancelCauseFunc, p int32, r *reader) {
	s := x.s
	for sleep := s.cfg.ReconnectSleep; ; {
		if r == nil {
			var err error
			if r, err = x.open(p, false); ctx.Err() == nil {
				x.opened(p, err)
			}
		}
		if r != nil {
			began := time.Now()
			x.consume(ctx, reconnect, r)
			if r = nil; time.Since(began) > time.Minute {
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
func (x *solo) opened(p int32, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil {
		x.failing[p] = struct{}{}
		x.s.health.failed(opening, everywhere, failure{err: err, fields: watermill.LogFields{"kafka_partition": p}})
		return
	}
	if delete(x.failing, p); len(x.failing) == 0 {
		x.s.health.works(opening, everywhere)
	}
}

// consume hands out a partition until its reader or ctx ends, and drains it.
func (x *solo) consume(ctx context.Context, reconnect context.CancelCauseFunc, r *reader) {
	s, topic, p := x.s, x.s.cfg.Topic, r.partition
	var errs sync.WaitGroup
	errs.Go(func() {
		for err := range r.pc.Errors() {
			s.health.failed(fetching, p, failure{err: err.Err})
			s.suspect(err.Err)
		}
	})
	claim := s.newClaim(claimStart{
		partition: p, position: position{offset: r.from, stored: true}, side: x.clients.side,
		gate: r.gate, logEnd: r.pc.HighWaterMarkOffset, reconnect: reconnect,
	})
	if s.cfg.Events.Assigned != nil {
		s.cfg.Events.Assigned(topic, p, r.from)
	}
	claim.run(r.pc.Messages(), ctx.Done(), nil)
	r.pc.AsyncClose()
	cause := ErrRevoked
	if s.closingNow() {
		cause = ErrClosing
	}
	claim.drain(r.pc.Messages(), cause, s.cfg.DrainTimeout)
	x.reached(p, claim.part.Mark().Offset)
	errs.Wait()
}
