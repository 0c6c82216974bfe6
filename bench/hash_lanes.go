package main

import (
	"context"
	"hash/fnv"
	"sync"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
)

// lanes is the usual way to handle a partition's records at once and keep the order
// of each key: a record goes to the lane that its key's hash names, and waits there
// behind whatever else does. Kept here for comparison.
type lanes struct {
	queues  []chan *sarama.ConsumerMessage
	running sync.WaitGroup
}

// laneDepth is more than a run brings to any lane but the hottest, so that one full
// lane does not soon hold back the others.
const laneDepth = 10_000

func newLanes(n int, handle func(*sarama.ConsumerMessage)) *lanes {
	l := &lanes{queues: make([]chan *sarama.ConsumerMessage, n)}
	for i := range l.queues {
		l.queues[i] = make(chan *sarama.ConsumerMessage, laneDepth)
		l.running.Go(func() {
			for record := range l.queues[i] {
				handle(record)
			}
		})
	}
	return l
}

func laneOf(key []byte, lanes int) int {
	h := fnv.New32a()
	h.Write(key)
	return int(h.Sum32() % uint32(lanes))
}

// put waits for room in the key's lane.
func (l *lanes) put(ctx context.Context, record *sarama.ConsumerMessage) {
	select {
	case l.queues[laneOf(record.Key, len(l.queues))] <- record:
	case <-ctx.Done():
	}
}

// close waits for what was put.
func (l *lanes) close() {
	for _, q := range l.queues {
		close(q)
	}
	l.running.Wait()
}

// hashSubscriber is a Watermill subscriber on lanes. It marks each record once it is
// acked, so a crash loses what slower lanes still hold: that costs less than to keep
// the books.
type hashSubscriber struct {
	group  sarama.ConsumerGroup
	lanes  int
	out    chan *message.Message
	cancel context.CancelFunc
	done   chan struct{}
}

func hashLanes(ctx context.Context, j job, m *meter) error {
	group, err := sarama.NewConsumerGroup(j.Brokers, j.Group, saramaConfig())
	if err != nil {
		return err
	}
	return router()(ctx, &hashSubscriber{group: group, lanes: j.Concurrency}, j, m)
}

func (h *hashSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	ctx, h.cancel = context.WithCancel(ctx)
	h.out, h.done = make(chan *message.Message), make(chan struct{})
	go func() {
		for range h.group.Errors() {
		}
	}()
	go func() {
		defer close(h.done)
		defer close(h.out)
		for ctx.Err() == nil {
			if err := h.group.Consume(ctx, []string{topic}, h); err != nil && ctx.Err() == nil {
				errorLogger().Error("consume", err, nil)
			}
		}
	}()
	return h.out, nil
}

func (h *hashSubscriber) Close() error {
	if h.cancel != nil {
		h.cancel()
		<-h.done
	}
	return h.group.Close()
}

func (*hashSubscriber) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (*hashSubscriber) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (h *hashSubscriber) ConsumeClaim(s sarama.ConsumerGroupSession, c sarama.ConsumerGroupClaim) error {
	l := newLanes(h.lanes, func(record *sarama.ConsumerMessage) {
		if s.Context().Err() == nil && h.deliver(s.Context(), record) {
			s.MarkMessage(record, "")
		}
	})
	defer l.close()
	for record := range c.Messages() {
		l.put(s.Context(), record)
	}
	return nil
}

// deliver sends the record until it is acked, and returns false if the session ends first.
func (h *hashSubscriber) deliver(ctx context.Context, record *sarama.ConsumerMessage) bool {
	for {
		msg, err := kafka.DefaultMarshaler{}.Unmarshal(record)
		if err != nil {
			errorLogger().Error("unmarshal", err, nil)
			return false
		}
		acked, err := h.once(ctx, msg)
		if err != nil || acked {
			return acked
		}
	}
}

func (h *hashSubscriber) once(ctx context.Context, msg *message.Message) (acked bool, err error) {
	own, cancel := context.WithCancel(ctx)
	defer cancel()
	msg.SetContext(own)
	select {
	case h.out <- msg:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	select {
	case <-msg.Acked():
		return true, nil
	case <-msg.Nacked():
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}
