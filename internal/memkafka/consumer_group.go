package memkafka

import (
	"context"
	"errors"
	"sync"

	"github.com/IBM/sarama"
)

// consumerGroup implements of sarama.ConsumerGroup what the library calls.
type consumerGroup struct {
	sarama.ConsumerGroup
	client sarama.Client
	member *member
	errors chan error
	close  sync.Once

	mu     sync.Mutex
	claims map[place]*claim // of the session
	paused map[place]bool   // also over sessions
}

// ConsumerGroup stands in for sarama.NewConsumerGroupFromClient.
func (l *Link) ConsumerGroup(name string, client sarama.Client) (sarama.ConsumerGroup, error) {
	c := l.cluster
	c.mu.Lock()
	m := &member{group: c.group(name)}
	c.mu.Unlock()
	l.mu.Lock()
	l.members = append(l.members, m)
	dead := l.dead
	l.mu.Unlock()
	if dead {
		return nil, errDead
	}
	return &consumerGroup{
		client: client, member: m, errors: make(chan error), claims: map[place]*claim{}, paused: map[place]bool{},
	}, nil
}

// Consume implements sarama.ConsumerGroup.
func (g *consumerGroup) Consume(ctx context.Context, topics []string, handler sarama.ConsumerGroupHandler) error {
	for _, topic := range topics {
		if err := g.client.RefreshMetadata(topic); err != nil && !errors.Is(err, sarama.ErrUnknownTopicOrPartition) {
			return err
		}
	}
	m, c := g.member, g.member.group.cluster
	claims, generation, err := m.join(ctx, topics)
	if err != nil {
		return err
	}
	s := &session{group: g, generation: generation, claims: claims}
	var cancel context.CancelCauseFunc
	s.ctx, cancel = context.WithCancelCause(ctx)
	defer cancel(nil)
	c.mu.Lock()
	s.id = m.id
	m.end = cancel
	if m.gone != nil || m.again {
		cancel(errRebalance)
	}
	c.mu.Unlock()
	err = s.run(handler, cancel)
	c.mu.Lock()
	m.end = nil
	gone := m.gone
	c.mu.Unlock()
	return errors.Join(err, gone)
}

// Errors implements sarama.ConsumerGroup.
func (g *consumerGroup) Errors() <-chan error { return g.errors }

// Close implements sarama.ConsumerGroup.
func (g *consumerGroup) Close() error {
	g.close.Do(func() {
		g.member.leave(sarama.ErrClosedConsumerGroup)
		close(g.errors)
	})
	return nil
}

// Pause implements sarama.ConsumerGroup.
func (g *consumerGroup) Pause(partitions map[string][]int32) { g.pause(partitions, true) }

// Resume implements sarama.ConsumerGroup.
func (g *consumerGroup) Resume(partitions map[string][]int32) { g.pause(partitions, false) }

func (g *consumerGroup) pause(partitions map[string][]int32, paused bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for topic, ps := range partitions {
		for _, p := range ps {
			at := place{topic, p}
			g.paused[at] = paused
			if c := g.claims[at]; c != nil {
				c.reader.pause(paused)
			}
		}
	}
}

// session implements of sarama.ConsumerGroupSession what the library calls: it stores
// positions itself.
type session struct {
	sarama.ConsumerGroupSession
	group      *consumerGroup
	ctx        context.Context
	id         string
	generation int32
	claims     map[string][]int32
}

// run carries a session out until it ends.
func (s *session) run(handler sarama.ConsumerGroupHandler, cancel context.CancelCauseFunc) error {
	var reads, serves sync.WaitGroup
	claims := map[place]*claim{}
	for topic, partitions := range s.claims {
		for _, p := range partitions {
			c, err := s.newClaim(place{topic, p}, &reads)
			if err != nil {
				return err
			}
			claims[place{topic, p}] = c
		}
	}
	s.group.mu.Lock()
	s.group.claims = claims
	for at, c := range claims {
		c.reader.paused = s.group.paused[at]
	}
	s.group.mu.Unlock()
	if err := handler.Setup(s); err != nil {
		return err
	}
	for _, c := range claims {
		stop := context.AfterFunc(s.ctx, c.reader.close)
		serves.Go(func() {
			defer stop()
			defer c.reader.close()
			defer cancel(errExited)
			_ = handler.ConsumeClaim(s, c)
		})
	}
	<-s.ctx.Done()
	serves.Wait()
	for _, c := range claims {
		c.Messages() // so that it ends, also if nobody has read it
		for range c.reader.messages {
		}
	}
	reads.Wait()
	return handler.Cleanup(s)
}

func (s *session) newClaim(at place, reads *sync.WaitGroup) (*claim, error) {
	client, cluster := s.group.client, s.group.member.group.cluster
	cluster.mu.Lock()
	stored := s.group.member.group.position(at).offset
	cluster.mu.Unlock()
	oldest, err := client.GetOffset(at.topic, at.partition, sarama.OffsetOldest)
	if err != nil {
		return nil, err
	}
	newest, err := client.GetOffset(at.topic, at.partition, sarama.OffsetNewest)
	if err != nil {
		return nil, err
	}
	c := &claim{initial: stored, reads: reads}
	from := stored
	if stored < oldest || stored > newest {
		c.initial = client.Config().Consumer.Offsets.Initial
		if from = oldest; c.initial == sarama.OffsetNewest {
			from = newest
		}
	}
	c.reader = cluster.newReader(client, at, from)
	return c, nil
}

// Claims implements sarama.ConsumerGroupSession, as the methods below do.
func (s *session) Claims() map[string][]int32 { return s.claims }
func (s *session) MemberID() string           { return s.id }
func (s *session) GenerationID() int32        { return s.generation }
func (s *session) Context() context.Context   { return s.ctx }

// claim implements sarama.ConsumerGroupClaim.
type claim struct {
	reader  *partitionReader
	initial int64
	reads   *sync.WaitGroup
}

func (c *claim) Topic() string              { return c.reader.at.topic }
func (c *claim) Partition() int32           { return c.reader.at.partition }
func (c *claim) InitialOffset() int64       { return c.initial }
func (c *claim) HighWaterMarkOffset() int64 { return c.reader.end() }

// Messages begins to read: what was paused before brings nothing.
func (c *claim) Messages() <-chan *sarama.ConsumerMessage {
	c.reader.start(c.reads)
	return c.reader.messages
}
