package commit

import (
	"errors"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// settleAfter is how long, after the next response of the coordinator, a request without an
// response may still be processed. docs/design.md has the argument.
const settleAfter = time.Second

// open describes requests without a response that may still change what is stored for a
// partition: their connection is gone, the next commit uses another one, and the broker may
// process that first. Until the matter is settled, nothing above the lowest of them counts
// as safely stored.
type open struct {
	count      int
	mark       partition.Mark // of the lowest request
	generation int32          // the latest generation that they were sent under
	settles    time.Time      // zero if the coordinator has not responded since
}

// errOpen is the error of a last commit whose time is up while the outcome is open.
var errOpen = errors.New("it is stored, but an earlier commit without a response may still be processed, and replace it")

func (o *open) add(c due) {
	if o.count == 0 || c.snapshot.Version < o.mark.Version {
		o.mark = c.snapshot.Mark
	}
	o.count++
	o.generation, o.settles = c.generation, time.Time{}
}

// responded records a commit that is stored, and its generation.
func (o *open) responded(generation int32, settle time.Duration) {
	switch {
	case o.count == 0:
	case generation > o.generation:
		*o = open{} // the group refuses requests of earlier generations
	case o.settles.IsZero():
		o.settles = time.Now().Add(settle)
	}
}

// readBack reads what is stored for partitions whose requests without a response had their time.
func (c *Committer) readBack() {
	asked := map[string][]int32{}
	var sources []*Source
	sure := map[*Source]*confirmation{}
	c.mu.Lock()
	for s := range c.sources {
		switch now := time.Now(); {
		case s.open.settles.IsZero() || s.open.settles.After(now):
		case s.open.mark.Version >= s.stored.Version: // the same is stored, whichever came last
			s.open = open{}
			s.serveStored()
			sure[s] = s.sureNow()
		default:
			sources = append(sources, s)
			asked[s.cfg.Topic] = append(asked[s.cfg.Topic], s.cfg.Partition)
		}
	}
	c.mu.Unlock()
	for s, confirmed := range sure {
		s.confirm(confirmed)
	}
	if len(sources) == 0 {
		return
	}
	defer c.watch()()
	response, err := fetchOffsets(c.cfg.Client, c.cfg.Group, asked, false)
	for _, s := range sources {
		found, perr := Position{}, err
		if err == nil {
			found, perr = positionIn(response, s.cfg.Topic, s.cfg.Partition)
		}
		wanted, confirmed, ok := s.hasRead(found, perr)
		s.confirm(confirmed)
		if !ok {
			c.cfg.PutBack(s.cfg.Topic, s.cfg.Partition, found.Offset, wanted)
		}
	}
	if err != nil {
		_ = c.cfg.Client.RefreshCoordinator(c.cfg.Group)
	}
}

// hasRead records what is stored, and returns what is confirmed by that. If the last commit
// was replaced, it returns false and the offset that should be stored, and it is stored
// again.
func (s *Source) hasRead(found Position, err error) (wanted int64, confirmed *confirmation, ok bool) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	wanted = s.stored.Offset
	switch {
	case s.closed != nil:
	case err != nil:
		s.open.settles = time.Now().Add(pause(4, err))
	case found.Offset > wanted, found.Offset == wanted && found.Metadata == s.text:
		s.open = open{}
		s.serveStored()
		confirmed = s.sureNow()
	default:
		// One of the requests has been processed; the others may follow.
		s.stored = partition.Mark{Offset: found.Offset, Seq: min(s.open.mark.Seq, s.stored.Seq)}
		s.has, s.unsure = found.Offset >= 0, nil
		for _, w := range s.waiters {
			w.replaced()
		}
		if s.open.count--; s.open.count > 0 {
			s.open.settles = time.Time{}
		} else {
			s.open = open{}
		}
		s.c.Urge()
		return wanted, nil, false
	}
	return wanted, confirmed, true
}
