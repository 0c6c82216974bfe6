package consumer

import (
	"errors"
	"fmt"
	"maps"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// ErrNotAssigned is returned for a partition that is not assigned to this member.
var ErrNotAssigned = errors.New("the partition is not assigned to this subscriber now")

// ErrByHand is wrapped by the reason of a record that a person has rejected.
var ErrByHand = errors.New("ackpolicy: rejected by hand")

// storedReason is such a reason that an earlier owner stored.
type storedReason string

func (e storedReason) Error() string        { return string(e) }
func (e storedReason) Is(target error) bool { return target == ErrByHand }

// Pause stops or resumes fetching a partition and handing out its records, or with -1 those of
// all partitions of the topic. It applies to this subscription, also after a partition was
// revoked and assigned again.
func (s *Subscription) Pause(topic string, p int32, paused bool) {
	meant := func(at place) bool { return at.topic == topic && (p < 0 || at.partition == p) }
	s.claimsMu.Lock()
	if paused {
		s.pausedByHand[place{topic, p}] = struct{}{}
	} else {
		maps.DeleteFunc(s.pausedByHand, func(at place, _ struct{}) bool { return meant(at) })
	}
	s.claimsMu.Unlock()
	s.obey(meant)
}

// SetMaxInFlight changes Config.MaxInFlight, which n must not exceed, for all partitions,
// including later ones. It does not apply to batches.
func (s *Subscription) SetMaxInFlight(n int) {
	if s.cfg.Batches != nil {
		return
	}
	s.claimsMu.Lock()
	s.maxInFlight = n
	s.claimsMu.Unlock()
	s.obey(func(place) bool { return true })
}

// obey has the claims that are meant carry out the last request.
func (s *Subscription) obey(meant func(place) bool) {
	for _, c := range s.assigned() {
		if meant(c.place) {
			c.obey()
		}
	}
}

// SetPace limits the deliveries per second of all partitions together; 0 means no limit.
func (s *Subscription) SetPace(perSecond float64) { s.pace.set(perSecond) }

// obey carries out the last request for the partition of the claim.
func (c *Claim) obey() {
	c.pausing.Lock() // two concurrent callers both carry out the last request
	defer c.pausing.Unlock()
	c.claimsMu.Lock()
	_, paused := c.pausedByHand[c.place]
	if !paused {
		_, paused = c.pausedByHand[place{c.topic, -1}]
	}
	most := c.maxInFlight
	c.claimsMu.Unlock()
	if most > 0 {
		c.do(c.part.SetMaxInFlight(most))
	}
	c.gate.mark(byHand, paused)
	c.do(c.part.Pause(paused))
}

// Retry delivers a record now that waits for its next delivery or is pending.
func (s *Subscription) Retry(topic string, p int32, offset int64) error {
	c := s.claim(place{topic, p})
	if c == nil {
		return ErrNotAssigned
	}
	was, ok, w := c.part.Retry(offset, Now())
	c.do(w)
	if !ok {
		return c.cannot(was, offset)
	}
	return nil
}

// Reject gives an unsettled record up, with a letter if there is a destination. A record that
// no handler has had yet is given up when its turn comes.
func (s *Subscription) Reject(topic string, p int32, offset int64, reason error) error {
	c := s.claim(place{topic, p})
	if c == nil {
		return ErrNotAssigned
	}
	d, ok, w := c.part.Condemn(offset, reason, Now())
	c.do(w)
	if d != nil {
		if !d.Handle.Delivery().reject(reason) {
			return fmt.Errorf("offset %d: its handler has settled it, or its partition has ended", offset)
		}
		return nil
	}
	if !ok {
		return c.cannot(partition.Confirming, offset)
	}
	return nil
}

func (c *Claim) cannot(was partition.State, offset int64) error {
	switch next := c.part.Next(); {
	case offset >= next:
		return fmt.Errorf("offset %d is not fetched yet, the next one to come is %d", offset, next)
	case offset < c.part.Mark().Offset:
		return fmt.Errorf("offset %d is settled", offset)
	case was == partition.InFlight || was == partition.NackedBusy:
		return fmt.Errorf("offset %d: %v", offset, was)
	case was == partition.Queued:
		return fmt.Errorf("offset %d: %v, it comes in its turn", offset, was)
	}
	return fmt.Errorf("offset %d is settled, being settled, or no record", offset)
}
