package consumer

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// pulse is the tick of the coarse clock for ages: reading a clock for each record would cost a
// hundredth of the throughput of a loop.
const pulse = 250 * time.Millisecond

// State is a snapshot of what a subscription has of a topic.
type State struct {
	Topic      string // of the subscription as given, if it has none yet
	Member     string // the id of this member; "" without a group, or before joining
	Generation int32
	Consuming  bool      // a session is under way
	Since      time.Time // when Consuming last changed
	Failing    []Failing
	Mixed      time.Time // since when the group has a member without transactions; zero: it has none
	Bytes      int64     // of unsettled records
	Claims     []ClaimState
}

// Failing describes something that fails between a subscription and Kafka.
type Failing struct {
	Symptom    string  // a word or two
	Text       string  // a sentence
	Partitions []int32 // empty if it is not about partitions
	Since      time.Time
	Err        error // the last one
}

// ClaimState is a snapshot of an assigned partition.
type ClaimState struct {
	Partition int32
	Since     time.Time
	LogEnd    int64 // at the last fetch
	Committed int64 // -1 if not known
	// Metadata is the size of the ledger of the last commit in bytes, which Room limits.
	Metadata, Room int
	CommitErr      error // of the last commit
	Unmarked       int   // settled records whose marks had no room in it
	Bytes          int64
	Paused         []string               // why nothing is fetched
	Slow           *partition.RecordState // the record whose handler has run longest, if longer than Config.HandlerSlow
	SlowHandlers   int
	Undecodable    bool // nothing is fetched because a batch cannot be decoded
	partition.Overview
}

// member is the identity under which a session consumes.
type member struct {
	id         string
	generation func() int32
}

// State returns a snapshot for each topic, in order.
func (s *Subscription) State() []State {
	of := map[string]*State{}
	for _, topic := range s.topics.list() {
		of[topic] = &State{Topic: topic, Failing: s.health.failures(topic)}
	}
	for _, c := range s.assigned() {
		st := of[c.topic]
		if st == nil { // it is gone, and this partition drains
			st = &State{Topic: c.topic, Failing: s.health.failures(c.topic)}
			of[c.topic] = st
		}
		claim := c.state()
		st.Bytes += claim.Bytes
		st.Claims = append(st.Claims, claim)
	}
	if len(of) == 0 {
		of[""] = &State{Topic: s.cfg.Topics.Text, Failing: s.health.failures("")}
	}
	member := s.member.Load()
	var all []State
	for _, topic := range slices.Sorted(maps.Keys(of)) {
		st := of[topic]
		st.Consuming, st.Since = s.health.consumes()
		st.Mixed = s.Mixed()
		if member != nil {
			st.Member, st.Generation = member.id, member.generation()
		}
		slices.SortFunc(st.Claims, func(a, b ClaimState) int { return cmp.Compare(a.Partition, b.Partition) })
		all = append(all, *st)
	}
	return all
}

// Mixed is State.Mixed.
func (s *Subscription) Mixed() time.Time { return s.mixed.outage.Since() }

// Topics returns the names of the topics that are read now; the text of the selection if there is none.
func (s *Subscription) Topics() []string {
	if list := s.topics.list(); len(list) > 0 {
		return list
	}
	return []string{s.cfg.Topics.Text}
}

// Reads reports whether the subscription reads a topic, or would if that existed.
func (s *Subscription) Reads(topic string) bool { return s.cfg.Topics.Has(topic) }

// assigned returns the claims.
func (s *base) assigned() []*Claim {
	s.claimsMu.Lock()
	defer s.claimsMu.Unlock()
	return slices.Collect(maps.Keys(s.claims))
}

func (c *Claim) state() ClaimState {
	st := ClaimState{
		Partition: c.partition, Since: c.began, LogEnd: c.logEnd(), Committed: -1, Bytes: c.portion.Bytes.Load(),
		Unmarked: int(c.unmarked.Load()), Paused: c.gate.reasons(), Undecodable: c.gate.has(undecodable), Overview: c.part.Overview(),
	}
	if c.cfg.HandlerSlow > 0 {
		var w partition.Work
		st.Slow, st.SlowHandlers, w = c.part.Slow(Now() - int64(c.cfg.HandlerSlow))
		c.do(w)
	}
	if c.source != nil {
		stored := c.source.Stored()
		if stored.Known {
			st.Committed = stored.Offset
		} else if c.from.stored {
			st.Committed = c.from.offset
		}
		st.Metadata, st.Room, st.CommitErr = stored.Metadata, stored.Room, stored.Err
	}
	return st
}

// Window describes at most so many records of an assigned partition, the oldest first. ok is
// false if the partition is not assigned.
func (s *Subscription) Window(topic string, p int32, most int) (records []partition.RecordState, sections []partition.Section, ok bool) {
	c := s.claim(place{topic, p})
	if c == nil {
		return nil, nil, false
	}
	records, sections = c.part.Window(most)
	return records, sections, true
}

// claim returns the claim of a partition that is not draining, or nil if there is none.
func (s *base) claim(at place) *Claim {
	s.claimsMu.Lock()
	defer s.claimsMu.Unlock()
	return s.running[at]
}

// keepTime advances the coarse clock, and looks for slow handlers, until stop is called. It is a timer,
// since a goroutine that waits takes memory in each subscription.
func (s *Subscription) keepTime() (stop func()) {
	s.clock.Store(Now())
	every := pulse
	if s.cfg.Memory != nil {
		every *= 4
	}
	turn := make(chan struct{}, 1) // closed by stop
	var timer *time.Timer
	timer = time.AfterFunc(every, func() {
		if _, ok := <-turn; !ok {
			return
		}
		s.clock.Store(Now())
		s.lookForSlow()
		s.mixed.remind()
		s.tellJoining()
		timer.Reset(every)
		turn <- struct{}{}
	})
	turn <- struct{}{}
	return func() {
		<-turn // not while it ticks
		close(turn)
		timer.Stop()
	}
}
