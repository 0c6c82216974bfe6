package consumer

import (
	"cmp"
	"slices"
	"time"

	"github.com/ackpolicy/watermill-ackpolicy/internal/outage"
	"github.com/ackpolicy/watermill-ackpolicy/internal/partition"
)

// Slow is a partition with handlers that have run for longer than Config.HandlerSlow.
type Slow struct {
	Topic     string
	Partition int32
	Oldest    partition.RecordState // the record whose handler began first
	For       time.Duration
	Handlers  int // the number of slow handlers
}

// slowHandlers has what was reported of slow handlers. Only the goroutine of the clock uses it.
type slowHandlers struct {
	reported map[int32]struct{} // partitions, until no handler is slow
	outage   outage.Outage
}

// lookForSlow reports handlers that have run for longer than Config.HandlerSlow: when a
// partition has the first one, then at growing intervals the one that has run longest, and
// once when all have returned.
func (s *Subscription) lookForSlow() {
	limit := s.cfg.HandlerSlow
	if limit <= 0 || s.cfg.Events.Slow == nil {
		return
	}
	now := s.clock.Load()
	var all, news []Slow
	for _, c := range s.assigned() {
		oldest, n := c.part.Slow(now - int64(limit))
		if n == 0 {
			continue
		}
		slow := Slow{Topic: c.topic, Partition: c.partition, Oldest: *oldest, For: time.Duration(now - oldest.Since), Handlers: n}
		all = append(all, slow)
		if _, before := s.slow.reported[c.partition]; !before {
			news = append(news, slow)
		}
	}
	if len(all) == 0 {
		s.slow.reported = nil
		if report, reported := s.slow.outage.Over(); reported {
			s.cfg.Events.SlowOver(report.For + limit)
		}
		return
	}
	if s.slow.reported == nil {
		s.slow.reported = map[int32]struct{}{}
	}
	for _, slow := range news {
		s.slow.reported[slow.Partition] = struct{}{}
	}
	_, due := s.slow.outage.Failed()
	switch {
	case due:
		s.cfg.Events.Slow(longestFirst(all))
	case len(news) > 0:
		s.cfg.Events.Slow(longestFirst(news))
	}
}

func longestFirst(all []Slow) []Slow {
	slices.SortFunc(all, func(a, b Slow) int { return cmp.Or(cmp.Compare(b.For, a.For), cmp.Compare(a.Partition, b.Partition)) })
	return all
}
