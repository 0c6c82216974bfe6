package consumer

import (
	"cmp"
	"slices"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// Slow is a partition that is held by handlers that have run for longer than
// Config.HandlerSlow, by a record that its handler left unsettled for Config.LeftPending, or by
// one that has failed failingDeliveries times.
type Slow struct {
	Topic     string
	Partition int32
	Oldest    partition.RecordState // the record whose handler began first, that was left, or that fails
	For       time.Duration
	Handlers  int // the number of slow handlers
}

// failingDeliveries is how many deliveries of a record that holds its partition fail before that
// is reported.
const failingDeliveries = 5

// slowWatch has what was reported of slow partitions. Only the goroutine of the clock uses it.
type slowWatch struct {
	reported map[place]struct{} // partitions, until none is slow
	outage   outage.Outage
}

// look reports slow partitions: when one becomes slow, then at growing intervals all of them,
// and once when none is slow any more.
func (w *slowWatch) look(all []Slow, limit time.Duration, report func([]Slow), over func(after time.Duration)) {
	if len(all) == 0 {
		w.reported = nil
		if r, reported := w.outage.Over(); reported {
			over(r.For + limit)
		}
		return
	}
	if w.reported == nil {
		w.reported = map[place]struct{}{}
	}
	var news []Slow
	for _, slow := range all {
		if _, before := w.reported[place{slow.Topic, slow.Partition}]; !before {
			news = append(news, slow)
			w.reported[place{slow.Topic, slow.Partition}] = struct{}{}
		}
	}
	_, due := w.outage.Failed()
	switch {
	case due:
		report(longestFirst(all))
	case len(news) > 0:
		report(longestFirst(news))
	}
}

// lookForSlow reports handlers that have run for longer than Config.HandlerSlow, which the next
// commits then name, records that were left unsettled for Config.LeftPending, and those that
// fail each time.
func (s *Subscription) lookForSlow() {
	limit := s.cfg.HandlerSlow
	if limit <= 0 {
		return
	}
	now := s.clock.Load()
	var slow, left, failing []Slow
	for _, c := range s.assigned() {
		oldest, n, w := c.part.Slow(now - int64(limit))
		c.do(w)
		if n > 0 {
			slow = append(slow, c.slow(oldest, now, n))
		}
		switch oldest := c.part.Overview().Oldest; {
		case oldest == nil:
		case oldest.State == partition.Pended && oldest.Since <= now-int64(s.cfg.LeftPending):
			left = append(left, c.slow(oldest, now, 0))
		case oldest.Failures() >= failingDeliveries:
			failing = append(failing, c.slow(oldest, now, 0))
		}
	}
	s.slow.look(slow, limit, s.cfg.Events.Slow, s.cfg.Events.SlowOver)
	s.pending.look(left, s.cfg.LeftPending, s.cfg.Events.Pending, s.cfg.Events.PendingOver)
	s.failing.look(failing, 0, s.cfg.Events.Failing, s.cfg.Events.FailingOver)
}

func (c *Claim) slow(oldest *partition.RecordState, now int64, handlers int) Slow {
	return Slow{Topic: c.topic, Partition: c.partition, Oldest: *oldest, For: time.Duration(now - oldest.Since), Handlers: handlers}
}

func longestFirst(all []Slow) []Slow {
	slices.SortFunc(all, func(a, b Slow) int {
		return cmp.Or(cmp.Compare(b.For, a.For), byPlace(place{a.Topic, a.Partition}, place{b.Topic, b.Partition}))
	})
	return all
}
