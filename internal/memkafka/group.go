package memkafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/IBM/sarama"
)

// group is a consumer group. Every change of its members is an eager rebalance: all sessions
// end, and once all members have come back, the next generation begins. None is given up,
// since the library's claims end in time. The cluster's lock guards it.
type group struct {
	cluster    *Cluster
	generation int32
	members    map[string]*member
	positions  map[place]position
	taken      map[place]bool // by members of somebody else
	waits      []chan struct{}
}

type position struct {
	offset   int64
	metadata string
}

func (g *group) position(at place) position {
	if p, ok := g.positions[at]; ok {
		return p
	}
	return position{offset: -1}
}

// accepts returns the code of the response to a commit.
func (g *group) accepts(id string, generation int32) int16 {
	switch {
	case generation < 0 && len(g.members) == 0:
	case g.members[id] == nil:
		return int16(sarama.ErrUnknownMemberId)
	case generation != g.generation:
		return int16(sarama.ErrIllegalGeneration)
	}
	return noError
}

// tell wakes those who wait for a commit.
func (g *group) tell() {
	for _, ch := range g.waits {
		close(ch)
	}
	g.waits = nil
}

// Commits returns a channel that is closed with the next commit of a group.
func (c *Cluster) Commits(name string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, ch := c.group(name), make(chan struct{})
	g.waits = append(g.waits, ch)
	return ch
}

// Take assigns a partition to a member of somebody else, or back to those of the group.
func (c *Cluster) Take(name, topic string, partition int32, taken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.group(name)
	g.taken[place{topic, partition}] = taken
	g.rebalance()
}

// rebalance ends all sessions, also those that are about to begin.
func (g *group) rebalance() {
	for _, m := range g.members {
		if m.joins == nil {
			m.again = true
		}
		if m.end != nil {
			m.end(errRebalance)
		}
	}
}

var (
	errRebalance = errors.New("the group rebalances")
	errDead      = errors.New("the process has died")
	errExited    = sarama.ErrSessionConsumeClaimExited
)

// member is a member of a group. The cluster's lock guards it.
type member struct {
	group  *group
	id     string
	topics []string
	gone   error         // why it is a member no more
	joins  chan struct{} // closed when its assignment is there; nil if it does not wait for one
	claims map[string][]int32
	end    context.CancelCauseFunc // of the session; nil outside of one
	again  bool                    // its session has to end: the group rebalances
}

// leave takes the member out of its group for good.
func (m *member) leave(cause error) {
	c := m.group.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.gone != nil {
		return
	}
	m.gone = cause
	delete(m.group.members, m.id)
	if m.end != nil {
		m.end(cause)
	}
	if m.joins != nil {
		close(m.joins)
		m.joins = nil
	}
	m.group.rebalance()
	m.group.assign()
}

// join waits for an assignment, and returns it with its generation.
func (m *member) join(ctx context.Context, topics []string) (claims map[string][]int32, generation int32, err error) {
	c, g := m.group.cluster, m.group
	c.mu.Lock()
	if m.gone != nil {
		c.mu.Unlock()
		return nil, 0, m.gone
	}
	if m.id == "" {
		c.members++
		m.id = fmt.Sprintf("member-%d", c.members)
		g.members[m.id] = m
	}
	joined := make(chan struct{})
	m.topics, m.joins, m.again = topics, joined, false
	g.rebalance()
	g.assign()
	c.mu.Unlock()
	select {
	case <-joined:
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.joins != nil { // nobody has responded
		m.joins = nil
		return nil, 0, context.Cause(ctx)
	}
	return m.claims, g.generation, m.gone
}

// assign begins the next generation once all members wait for it.
func (g *group) assign() {
	ids := slices.Sorted(maps.Keys(g.members))
	for _, id := range ids {
		if g.members[id].joins == nil {
			return
		}
	}
	if len(ids) == 0 {
		return
	}
	g.generation++
	topics := map[string][]*member{}
	for _, id := range ids {
		m := g.members[id]
		m.claims = map[string][]int32{}
		for _, name := range m.topics {
			topics[name] = append(topics[name], m)
		}
	}
	for name, members := range topics {
		n := 0
		if t := g.cluster.topics[name]; t != nil {
			n = len(t.partitions)
		}
		for p := range n { // in turn, from the first member on
			if m := members[p%len(members)]; !g.taken[place{name, int32(p)}] {
				m.claims[name] = append(m.claims[name], int32(p))
			}
		}
	}
	for _, id := range ids {
		close(g.members[id].joins)
		g.members[id].joins = nil
	}
}
