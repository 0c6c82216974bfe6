package consumer

import (
	"context"
	"errors"
	"sync"

	"github.com/IBM/sarama"
)

// consumeAll reads every partition of the topic without a group: from the
// configured start, after a reconnect from where it was.
func (s *Subscription) consumeAll(ctx context.Context, c *clients, partitions []int32) error {
	consumer, err := sarama.NewConsumerFromClient(c.fetch)
	if err != nil {
		return err
	}
	wrapped := consumer
	if s.cfg.Tracer != nil {
		wrapped = s.cfg.Tracer.WrapConsumer(consumer)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := s.watchTopic(ctx, c.side, func() { cancel(errAnew) }, nil)
	defer watch.stop()
	watch.look()
	if now, anew := s.topic.anew(); anew {
		s.mu.Lock()
		for _, p := range partitions {
			s.positions[p] = sarama.OffsetOldest
		}
		s.mu.Unlock()
		s.topic.restarted(now)
	}
	c.fetch.refreshed = func() error {
		watch.look()
		if _, anew := s.topic.anew(); anew {
			return errAnew
		}
		return nil
	}
	s.health.session(true)
	interrupter := s.interrupt(ctx)
	interrupter.begin(ctx)
	var claims sync.WaitGroup
	for _, p := range partitions {
		claims.Go(func() {
			// One partition that ends is a reason to start anew for all.
			defer cancel(nil)
			if err := s.consumePartition(ctx, cancel, c, wrapped, p); err != nil {
				s.health.failed(fetching, p, failure{err: err})
			}
		})
	}
	claims.Wait()
	err = consumer.Close()
	interrupter.end()
	interrupter.stop()
	if ctx.Err() != nil && s.closingNow() {
		return err
	}
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) || errors.Is(cause, errAnew) {
		return errors.Join(cause, err)
	}
	return errors.Join(errors.New("a partition's reader ended"), err)
}

func (s *Subscription) consumePartition(ctx context.Context, reconnect context.CancelCauseFunc, c *clients, consumer sarama.Consumer, p int32) error {
	topic := s.cfg.Topic
	s.mu.Lock()
	from, resumed := s.positions[p]
	s.mu.Unlock()
	if !resumed {
		from = s.cfg.Sarama.Consumer.Offsets.Initial
	}
	pc, err := consumer.ConsumePartition(topic, p, from)
	reached := from
	reset := resumed && errors.Is(err, sarama.ErrOffsetOutOfRange)
	if reset {
		from = s.cfg.Sarama.Consumer.Offsets.Initial
		pc, err = consumer.ConsumePartition(topic, p, from)
	}
	if err != nil {
		return err
	}
	anew := resumed && from == sarama.OffsetOldest
	gate := newGate(func(paused bool) {
		if paused {
			pc.Pause()
		} else {
			pc.Resume()
		}
	})
	if from < 0 {
		from, _ = c.fetch.position(topic, p, from)
	}
	switch {
	case anew:
		s.reset(topic, p, -1, from, errAnew)
	case reset:
		s.reset(topic, p, reached, from, sarama.ErrOffsetOutOfRange)
	}
	if s.cfg.Tracer != nil {
		pc = s.cfg.Tracer.WrapPartitionConsumer(pc)
	}
	var errs sync.WaitGroup
	errs.Go(func() {
		for err := range pc.Errors() {
			s.health.failed(fetching, p, failure{err: err.Err})
			s.suspect(err.Err)
		}
	})
	claim := s.shared.newClaim(claimStart{
		topic: topic, partition: p, offset: from, stored: true,
		side:      c.side,
		reconnect: reconnect,
		ctx:       s.values,
		gate:      gate,
		end:       pc.HighWaterMarkOffset,
	})
	if s.cfg.Events.Assigned != nil {
		s.cfg.Events.Assigned(topic, p, from)
	}
	claim.run(pc.Messages(), ctx.Done(), nil)
	pc.AsyncClose()
	cause := ErrRevoked
	if s.closingNow() {
		cause = ErrClosing
	}
	claim.drain(pc.Messages(), cause, s.cfg.DrainTimeout)
	s.mu.Lock()
	s.positions[p] = claim.part.Mark().Offset
	s.mu.Unlock()
	errs.Wait()
	return nil
}
