package consumer

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// pulse is how often the coarse clock goes on, by which ages are counted: a clock read for
// each record would cost a hundredth of the speed of a loop.
const pulse = 250 * time.Millisecond

// State is a snapshot of a subscription.
type State struct {
	Member     string // the group's id of this member; "": without a group, or not joined yet
	Generation int32
	Consuming  bool      // a session is under way
	Since      time.Time // Consuming is what it is
	Failing    []Failing
	Bytes      int64 // of unsettled records
	Claims     []ClaimState
}

// Failing is a symptom of Kafka's not working.
type Failing struct {
	Symptom    string  // a word or two
	Text       string  // a sentence
	Partitions []int32 // none: it is not one of partitions
	Since      time.Time
	Err        error // the last one
}

// ClaimState is a snapshot of an assigned partition.
type ClaimState struct {
	Partition int32
	Since     time.Time
	LogEnd    int64 // at the last fetch
	Committed int64 // -1: nothing that is known
	// Metadata is how many bytes the ledger of the last commit took, of Room.
	Metadata, Room int
	CommitErr      error // of the last commit
	Unmarked       int   // settled records for whose marks it had no room
	Bytes          int64
	Paused         []string        // why nothing is fetched
	Slow           *partition.Held // the record whose handler has run for longer than Config.HandlerSlow, for longest
	SlowHandlers   int
	Undecodable    bool // nothing is fetched because of a batch
	partition.Overview
}

// member is who a session consumes as.
type member struct {
	id         string
	generation func() int32
}

// State returns a snapshot.
func (s *Subscription) State() State {
	st := State{Bytes: s.budget.Held(), Failing: s.health.failures()}
	st.Consuming, st.Since = s.health.consumes()
	if m := s.member.Load(); m != nil {
		st.Member, st.Generation = m.id, m.generation()
	}
	for _, c := range s.assigned() {
		st.Claims = append(st.Claims, c.state())
	}
	slices.SortFunc(st.Claims, func(a, b ClaimState) int { return cmp.Compare(a.Partition, b.Partition) })
	return st
}

// assigned returns the claims.
func (s *shared) assigned() []*Claim {
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
		st.Slow, st.SlowHandlers = c.part.Slow(Now() - int64(c.cfg.HandlerSlow))
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

// Window describes what an assigned partition holds: at most so many records, the oldest first.
// ok is false if the partition is not assigned.
func (s *Subscription) Window(p int32, most int) (records []partition.Held, sections []partition.Section, ok bool) {
	c := s.claim(p)
	if c == nil {
		return nil, nil, false
	}
	records, sections = c.part.Window(most)
	return records, sections, true
}

// claim returns the claim of a partition that is not draining, nil if there is none.
func (s *shared) claim(p int32) *Claim {
	s.claimsMu.Lock()
	defer s.claimsMu.Unlock()
	return s.running[p]
}

// keepTime moves the coarse clock on, and looks for handlers that do not return, until stop.
func (s *Subscription) keepTime(stop <-chan struct{}) {
	ticker := time.NewTicker(pulse)
	defer ticker.Stop()
	for {
		s.clock.Store(Now())
		s.lookForSlow()
		select {
		case <-ticker.C:
		case <-stop:
			return
		}
	}
}
